"""Does NVIDIA's parser and builder take this file at all? Asked of TensorRT-RTX, which needs no GPU for it.

Passing is necessary, not sufficient: it is another builder, for another GPU (SM86, the nearest to Orin's SM87; with FP8
SM89).
"""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.core.errors import MissingDependency
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine.backends import pick_backend
from msn_deploy.engine.build import rtx_default
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.inspector import count_convs, layers_from_log, memory_from_log
from msn_deploy.engine.trt_build import build_plan
from msn_deploy.model.opened import OpenModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCheck:
    """What another builder made of the file: its name and version, its target, and counts."""

    builder: str
    target: str
    layers: int
    int8_convs: int
    fp8_convs: int
    weight_memory_bytes: int | None


def check_with_rtx(model: OpenModel, *, options: BuildOptions, progress: Progress = silent) -> ProxyCheck | None:
    """Build a network with TensorRT-RTX and throw the plan away; None where it is not installed, or lacks operators.

    Raises InputError if it cannot be parsed or built.
    """
    if options.plugins:  # it takes none
        return None
    target = rtx_default(model.precision)
    try:
        backend = pick_backend("tensorrt-rtx", target)
    except MissingDependency:
        return None
    same_range = BuildOptions(
        batch=options.batch, min_batch=options.min_batch, opt_batch=options.opt_batch, shapes=options.shapes
    )
    _, messages = build_plan(model, backend, target, model.precision, same_range, progress)
    texts = [text for _, text in messages.texts]
    messages.start()
    layers = layers_from_log(texts)
    return ProxyCheck(
        builder=backend.title,
        target=target.name,
        layers=len(layers),
        int8_convs=count_convs(layers, "int8"),
        fp8_convs=count_convs(layers, "fp8"),
        weight_memory_bytes=memory_from_log(texts).weight_memory_bytes,
    )
