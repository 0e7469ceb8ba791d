"""`build-engine`: make the typed ONNX file if the precision asks for it, then build the engine from it.

Where the engine can only be built on another machine, the file and a script that builds it there are the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import DEFAULT_METHOD, PRECISIONS
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import (
    BuildOptions,
    BuildReport,
    DeviceBuild,
    DeviceFacts,
    ProxyCheck,
    build_engine_file,
    check_precision,
    check_with_rtx,
    must_build_elsewhere,
    what_machine,
    write_device_script,
)
from msn_deploy.engine.build import check_out, check_portable
from msn_deploy.engine.device_script import check_dla_precision, engine_names
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.calibrate import DEFAULT_SAMPLES, PrecisionReport, calibrate_model
from msn_deploy.pipeline.fp16 import cast_model


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Built engines, or how to build them on the device, and the ONNX file they come from.

    engine: None if it has to be built elsewhere. replicates: further engines of the same file. typed: how that file
    was made, None if it was given. elsewhere: the script for the device. proxy: what TensorRT-RTX made of the file,
    None if it is not installed or was not asked.
    """

    engine: BuildReport | None
    onnx: Path
    typed: PrecisionReport | None
    replicates: tuple[BuildReport, ...] = ()
    elsewhere: DeviceBuild | None = None
    proxy: ProxyCheck | None = None


def build_engine(
    onnx: Path,
    out: Path,
    *,
    precision: str = "fp32",
    data: str | None = None,
    method: str = DEFAULT_METHOD,
    samples: int = DEFAULT_SAMPLES,
    max_drop: float | None = None,
    leave_out: Sequence[str] = (),
    options: BuildOptions | None = None,
    progress: Progress = silent,
    machine: DeviceFacts | None = None,
) -> EngineReport:
    """Build `out` from an ONNX file in the given precision; fp16 and int8 first write NAME.fp16.onnx or NAME.int8.onnx.

    The typed file lies beside `out`. For a Jetson that this machine is not, NAME.build.sh takes the place of the
    engine. data, method, samples, max_drop, leave_out: see `calibrate`. machine: found out if not given.
    Raises InputError (exit 2), GateError (exit 1), MissingDevice or MissingDependency (exit 3).
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    options = replace(options or BuildOptions(), precision=precision)
    target, machine = options.target, machine or what_machine()
    check_out(onnx, out)
    elsewhere = target is not None and must_build_elsewhere(target, options.backend, machine)
    if target is not None:
        check_precision(target, precision)
        check_portable(options, rtx=not target.jetson, jetson=target.jetson)
    if elsewhere:
        check_dla_precision(target, precision, options)
    typed = None
    if (max_drop is not None or leave_out) and precision != "int8":
        raise InputError("`--max-drop` and `--leave-out` are for INT8.\nGive `--precision int8`, or leave them away.")
    model = open_model(onnx, step="build-engine")
    if model.precision != precision:
        source = out.with_name(f"{onnx.stem}.{precision}.onnx")
        if precision == "fp32":
            raise InputError(f"{onnx} is not FP32, and precision cannot be added to it.\nGive the FP32 file.")
        if precision == "fp16":
            typed, model = cast_model(model, source, data=data, progress=progress)
        else:
            typed, model = calibrate_model(
                model, source, data=data, method=method, samples=samples, max_drop=max_drop, leave_out=leave_out,
                progress=progress,
            )  # fmt: skip
    if elsewhere:
        proxy = check_with_rtx(model, options=options, progress=progress)
        script = write_device_script(model, out, target=target, precision=precision, options=options)
        return EngineReport(engine=None, onnx=model.path, typed=typed, elsewhere=script, proxy=proxy)
    built = [
        build_engine_file(
            model, out.with_name(name), options=options, replicate=number, progress=progress, machine=machine
        )
        for number, name in enumerate(engine_names(out, options.replicates), 1)
    ]
    return EngineReport(engine=built[0], onnx=model.path, typed=typed, replicates=tuple(built[1:]))
