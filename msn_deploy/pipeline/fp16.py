"""The FP16 cast: an FP32 ONNX file to its half-precision twin, after a look at the values on real inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from msn_deploy.core.artifacts import publish
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.feeds import Feeds
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.model.parity import classifies, rung
from msn_deploy.pipeline.calibrate import VERSIONS, PrecisionReport, check_door, outputs_of
from msn_deploy.pipeline.images import CalibrationInputs, calibration_inputs, has_inputs, random_inputs
from msn_deploy.pipeline.ranges import sizes_for_fp16
from msn_deploy.pipeline.tune import TIMED_FEEDS, EngineSite, Tuner

_LOG = logging.getLogger(__name__)
_SAMPLES = 128  # enough to see the order of magnitude, which is all that counts here
_COMPARED = 32  # samples that the file is run on


def cast_to_fp16(
    onnx: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    state: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> PrecisionReport:
    """Write the FP16 twin of an FP32 file. Nodes that half precision is not enough for stay in FP32, and are named.

    data: images (a name or folder) or feeds (.npz, .npy or a folder of them) to look at; None takes what the model was
    trained on, where that is on this machine. Without any, random numbers are looked at, which the log says. state: see
    `CalibrationOptions`.
    Raises InputError (exit 2), GateError (exit 1) where the outputs are not finite in FP16, MissingDependency (exit 3).
    """
    model = open_model(Path(onnx), step="build-engine --precision fp16")
    return cast(model, Path(out), data=data, state=state, progress=progress)[0]


def cast(
    model: OpenModel,
    out: Path,
    *,
    data: str | None,
    state: Mapping[str, str] | None = None,
    engines: EngineSite | None = None,
    progress: Progress,
) -> tuple[PrecisionReport, OpenModel]:
    """Do what `cast_to_fp16` does to an opened model; return the report, and the model that was written.

    engines: from `engines_for`, to time them: layers that make the network slower in FP16 also stay in FP32.
    """
    from msn_deploy.quant.fp32_nodes import fold_constants, needs_fp32  # late, as are the next: they import onnx
    from msn_deploy.quant.placement import WEIGHTED, name_of
    from msn_deploy.quant.precision import to_fp16

    check_door(model, out)
    info, proto = model.info, fold_constants(model.proto, load=run_on_one_thread)
    looks = has_inputs(info, data) or state
    given = calibration_inputs(model, data, samples=_SAMPLES, state=state) if looks else None
    parents = [model.as_parent(), *(given.parents if given is not None else ())]
    samples = len(given.samples) if given is not None else 0
    measured = partial(sizes_for_fp16, proto, progress=progress)
    maxima: dict[str, float] = {}
    minima: dict[str, float] = {}
    if given is not None:
        maxima, minima = measured(given.samples, key={"model": model.sha256, **given.key})
    else:
        _LOG.warning("no data to look at: %s is judged by its weights and on random numbers", model.path)
        try:
            given = random_inputs(model.inputs)
            maxima, minima = measured(given.samples, key={"model": model.sha256, **given.key})
        except InputError as cause:
            given = None
            _LOG.warning("it does not run on random numbers (%s): weights alone count", str(cause).splitlines()[0])
    in_fp32 = needs_fp32(proto, maxima, minima)
    for name, why in in_fp32.items():
        _LOG.warning("%s stays in FP32: %s", name, why)
    tuning = None
    if engines is not None:
        if given is None:
            raise InputError(f"{model.path} runs on no random numbers, so nothing can be timed.\nGive `--data`.")
        layers = [name_of(node) for node in proto.graph.node if node.op_type in WEIGHTED]
        timed = list(given.runs(TIMED_FEEDS, most=1))
        tuner = Tuner("fp16", lambda names: to_fp16(proto, keep_fp32=names), layers, timed, engines, progress)
        left_out = tuner(tuple(in_fp32))
        tuning = tuner.tuning(left_out, in_fp32)
        in_fp32 |= dict.fromkeys(tuning.let_out, "the network is faster here with it in FP32")
    graph = to_fp16(proto, keep_fp32=in_fp32)
    content = with_info(graph, (info or ModelInfo(net="custom", norm="custom")).with_precision("fp16"))
    made = made_model(out, graph, content)
    parity = None
    if given is not None:
        truth, outputs = (outputs_of(each, given, most=_COMPARED) for each in (model, made))
        _require_finite(made, given, truth, outputs)
        parity = rung("fp16", truth, outputs, classifies=info is not None and classifies(info))
    publish(
        out,
        content,
        kind="onnx",
        parents=parents,
        versions=VERSIONS,
        config={"precision": "fp16", "samples": samples, "recipe": {} if info is None else info.recipe},
        facts={"maxima": maxima, "in_fp32": in_fp32, "tuning": None if tuning is None else asdict(tuning)},
    )
    report = PrecisionReport(
        path=out,
        precision="fp16",
        bytes=len(content),
        bytes_fp32=len(model.data),
        samples=samples,
        scales=0,
        parity=parity,
        in_fp32=in_fp32,
        tuning=tuning,
    )
    return report, made


def _require_finite(made: OpenModel, given: CalibrationInputs, truth: Feeds, outputs: Feeds) -> None:
    """Raise GateError that names the first node which makes no number where FP32 makes one."""
    from msn_deploy.model.graphs import with_outputs

    for name, expected in truth.items():
        got = outputs[name]
        if expected.dtype.kind != "f" or expected.shape != got.shape or np.isfinite(got[np.isfinite(expected)]).all():
            continue
        inside = [each for node in made.proto.graph.node if node.op_type != "Constant" for each in node.output if each]
        runner = run_on_one_thread(with_outputs(made.proto, inside))
        runs = (runner.run(feeds) for feeds in given.runs(_COMPARED, most=1))
        first = next((each for values in runs for each in inside if _is_lost(values[each])), name)
        node = next(node for node in made.proto.graph.node if first in node.output)
        raise GateError(
            f"{made.path.name}: its output {name} is not finite in FP16, and is in FP32; the first tensor that is not "
            f"is {first}, of {node.name or first} ({node.op_type}).\nNothing was written. Stay with FP32 or INT8."
        )


def _is_lost(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all()
