"""`bench --layers`: where the time of each measured model goes, looked at when the measuring is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msn_deploy.bench import BenchResult
from msn_deploy.bench.layers import LayerProfile, limits_of
from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress
from msn_deploy.engine import Runner, target_of, what_machine
from msn_deploy.engine.layer_times import time_ort_layers, time_trt_layers
from msn_deploy.model.opened import OpenModel, open_model

if TYPE_CHECKING:
    from msn_deploy.model.cost import Cost


@dataclass(frozen=True, slots=True)
class Loaded:
    """An arm that was measured: its name, its first build, the batches it was fed, and how it was loaded."""

    name: str
    runner: Runner
    batches: Sequence[NDArray[np.float32]]
    fuse_norms: bool


def check_layers(paths: Sequence[Path], *, provider: str) -> None:
    """Refuse, before measuring, what cannot be profiled afterwards. Raises InputError."""
    if provider != "cpu" and any(path.suffix.lower() == ".onnx" for path in paths):
        raise InputError(
            f"--layers: on {provider}, ONNX Runtime's profiler times the launches, not the layers.\n"
            "Leave `--layers` out, take `--device cpu`, or build an engine with `msn-deploy build-engine`."
        )
    checkpoint = next((path for path in paths if path.suffix.lower() == ".safetensors"), None)
    if checkpoint is not None:
        raise InputError(f"--layers times ONNX files and engines; {checkpoint} runs in torch.\nExport it first.")


def with_layers(
    result: BenchResult, loaded: Sequence[Loaded], *, threads: int, provider: str, root: Path, progress: Progress
) -> BenchResult:
    """Return the result with a layer profile in every arm."""
    target = target_of(what_machine(root))
    profiles = {}
    for at, each in enumerate(loaded):
        progress(at, len(loaded), f"layers of {each.name}")
        path, batch = each.runner.path, len(each.batches[0])
        if path.suffix.lower() == ".engine":
            times = time_trt_layers(each.runner, each.batches)
            source = onnx_of(path)
            model = None if source is None else open_model(source, step="counting operations")
            limits = limits_of(target, each.runner.precision)
        else:
            model = open_model(path, step="timing layers")
            times = time_ort_layers(model, each.batches, threads=threads, provider=provider, fuse_norms=each.fuse_norms)
            limits = None  # the table of targets knows GPUs, and this ran on the CPU
        profiles[each.name] = LayerProfile(
            source=times.source,
            runs=times.runs,
            layers=times.layers,
            cost=_cost(model, batch=batch),
            limits=limits,
        )
    return replace(result, arms=tuple(replace(arm, layers=profiles[arm.name]) for arm in result.arms))


def _cost(model: OpenModel | None, *, batch: int) -> Cost | None:
    if model is None:
        return None
    from msn_deploy.model.cost import cost_of  # late: it imports onnx, which a device that times engines can lack

    return cost_of(model.proto, batch=batch)


def onnx_of(engine: Path) -> Path | None:
    """Return the ONNX file that an engine was built from, if it lies beside it unchanged."""
    parent = next((each for each in read_sidecar(engine).parents if each.role == "onnx"), None)
    if parent is None:
        return None
    path = engine.with_name(Path(parent.file).name)
    return path if path.is_file() and sha256_of(path) == parent.sha256 else None
