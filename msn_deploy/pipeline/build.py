"""`build-engine`: make the typed ONNX file if the precision asks for it, then build the engine from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import PRECISIONS
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import did_you_mean
from msn_deploy.engine import BuildOptions, BuildReport, build_engine_file, check_precision, read_onnx
from msn_deploy.pipeline.calibrate import DEFAULT_SAMPLES, PrecisionReport, calibrate
from msn_deploy.pipeline.fp16 import cast_to_fp16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """A built engine, the ONNX file it was built from, and how that file was made (None: it was given)."""

    engine: BuildReport
    onnx: Path
    typed: PrecisionReport | None


def build_engine(
    onnx: Path,
    out: Path,
    *,
    precision: str = "fp32",
    data: str | None = None,
    method: str = "entropy",
    samples: int = DEFAULT_SAMPLES,
    options: BuildOptions | None = None,
    progress: Progress = silent,
) -> EngineReport:
    """Build `out` from an ONNX file in the given precision; fp16 and int8 first write NAME.fp16.onnx or NAME.int8.onnx.

    The typed file lies beside `out` and stays there also when the engine itself has to be built on the device. data,
    method, samples: for calibrating, see `calibrate`. Raises InputError (exit 2), MissingDevice or
    MissingDependency (exit 3).
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    if out.suffix != ".engine":
        raise InputError(f"{out} has to end in .engine.")
    options = replace(options or BuildOptions(), precision=precision)
    if options.target is not None:
        check_precision(options.target, precision)
    typed = None
    source = onnx
    if read_onnx(onnx, step="build-engine").precision != precision:
        source = out.with_name(f"{onnx.stem}.{precision}.onnx")
        if precision == "fp32":
            raise InputError(f"{onnx} is not FP32, and precision cannot be added to it.\nGive the FP32 file.")
        if precision == "fp16":
            typed = cast_to_fp16(onnx, source, data=data, progress=progress)
        else:
            typed = calibrate(onnx, source, data=data, method=method, samples=samples, progress=progress)
    engine = build_engine_file(source, out, options=options, progress=progress)
    return EngineReport(engine=engine, onnx=source, typed=typed)
