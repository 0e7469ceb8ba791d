"""`build-engine`: make the typed ONNX file if the precision asks for it, then build the engine from it.

Where the engine can only be built on another machine, the file and a script that builds it there are the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msn_deploy.core.errors import InputError, MissingDevice, did_you_mean
from msn_deploy.core.model_info import PRECISIONS, QUANTISED
from msn_deploy.core.partials import claimed
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.results import Result
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
from msn_deploy.engine.build import Site, check_out, check_portable, choose_site
from msn_deploy.engine.calibration_table import read_table
from msn_deploy.engine.device_script import check_dla_file, engine_names
from msn_deploy.engine.dla import check_int8, has_dla, no_dla, takes_table
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.model.opened import OpenModel, open_model
from msn_deploy.pipeline.calibrate import CalibrationOptions, PrecisionReport, calibrated
from msn_deploy.pipeline.fp16 import cast
from msn_deploy.pipeline.tune import engines_for


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineReport(Result):
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
    onnx: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    precision: str = "fp16",
    options: BuildOptions | None = None,
    calibration: CalibrationOptions | None = None,
    progress: Progress = silent,
    machine: DeviceFacts | None = None,
    **settings: Any,
) -> EngineReport:
    """Build `out` from an ONNX file in the given precision; all but fp32 first write NAME.PRECISION.onnx.

    The typed file is written next to `out`. On a DLA whose TensorRT takes no Q/DQ nodes (up to 10.7), INT8 is built
    from the FP32 file and a calibration table, NAME.int8.cache, which is written with NAME.int8.onnx. For a Jetson that
    this machine is not, NAME.build.sh replaces the engine.

    Args:
        onnx: The file; it is opened once.
        out: The engine; the name ends in .engine. None: NAME.PRECISION.engine beside the ONNX file.
        precision: One of PRECISIONS.
        options: What is chosen about the build.
        calibration: What is chosen about the calibration; for fp16 `data`, `state` and `tune` alone count.
        progress: Told how far it is.
        machine: Found out if not given.
        **settings: Fields of CalibrationOptions, over those of `calibration`: `data="mnist", samples=128`.

    Raises:
        InputError: A file, target or precision that cannot be built (exit 2).
        GateError: Too much accuracy or DLA would be lost (exit 1).
        MissingDevice, MissingDependency: What is not here (exit 3).

    Examples:
        >>> import msn_deploy
        >>> report = msn_deploy.build_engine("runs/cnn3_msn.int8.onnx", precision="int8")  # doctest: +SKIP
        >>> report.engine.path.name  # doctest: +SKIP
        'cnn3_msn.int8.engine'
    """
    onnx = Path(onnx)
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    calibration = calibration or CalibrationOptions()
    calibration = replace(calibration, **{"precision": precision if precision in QUANTISED else "int8"} | settings)
    options = replace(options or BuildOptions(), precision=precision)
    core = "" if options.dla is None else f".dla{options.dla}"
    named = f"{onnx.stem.removesuffix(f'.{precision}')}.{precision}{core}.engine"
    out = onnx.with_name(named) if out is None else Path(out)
    target, machine = options.target, machine or what_machine()
    if calibration.runtime != "tensorrt":
        raise InputError(f"an engine can't be built from what is laid out for {calibration.runtime}.\nLeave it out.")
    places = _places(calibration)
    places_in = {"--tune": ("int8", "fp16"), "--leave-out": ("int8", "fp8")}.get(places or "", ("int8",))
    if places is not None and precision not in places_in:
        named = " and ".join(map(str.upper, places_in))
        raise InputError(f"`{places}` is for {named}.\nGive `--precision int8`, or leave it out.")
    check_out(onnx, out)
    site = None
    if target is not None and must_build_elsewhere(target, options.backend, machine):
        check_precision(target, precision)
        check_portable(options, rtx=False, jetson=True)
        if calibration.tune is not None:
            raise MissingDevice(
                f"`--tune latency` times engines of {target.title}, which this machine is not.\n"
                "Run it on that device, or leave it out."
            )
    else:
        site = choose_site(options, precision, machine=machine)
    with claimed(out):
        model = open_model(onnx, step="build-engine")
        if model.runtime == "onnxruntime":
            raise InputError(
                f"{onnx} is laid out for ONNX Runtime on a CPU; TensorRT does not take its UINT8 and INT32 numbers.\n"
                "Give the FP32 file that it was made from: `--precision int8` lays the same scales out for TensorRT."
            )
        options.ranges(model)  # what it refuses is told before a calibration
        quantised = None
        tensorrt = None if options.dla is None else _table_reader(model, options, precision, site)
        if tensorrt is None:
            model, typed = _typed(model, out, options, precision, calibration, progress)
        else:
            options, typed = _with_table(model, out, options, calibration, tensorrt, progress)
            quantised = None if typed is None else typed.path
        if site is None:
            from msn_deploy.pipeline.opset import warn_of_unread  # late: it imports onnx

            assert target is not None
            warn_of_unread(model.proto, target)
            proxy = check_with_rtx(model, options=options, progress=progress)
            script = write_device_script(
                model,
                out,
                target=target,
                precision=precision,
                options=options,
                quantised=quantised if target.name.startswith("agx-orin") else None,
            )
            return EngineReport(engine=None, onnx=model.path, typed=typed, elsewhere=script, proxy=proxy)
        built = [
            build_engine_file(
                model, out.with_name(name), options=options, site=site, replicate=number, progress=progress
            )
            for number, name in enumerate(engine_names(out, options.replicates), 1)
        ]
        return EngineReport(engine=built[0], onnx=model.path, typed=typed, replicates=tuple(built[1:]))


def _table_reader(model: OpenModel, options: BuildOptions, precision: str, site: Site | None) -> str | None:
    """Return the TensorRT that takes INT8 on a DLA as a calibration table; None if it takes Q/DQ nodes, or no INT8.

    Of several that a device may have (site: None), it is the newest. Raises InputError for a precision, a file or a
    table that the DLA does not take.
    """
    assert options.dla is not None
    table = options.calibration_table is not None
    if precision in ("fp32", "fp8"):
        raise InputError("a DLA computes in FP16 and INT8 only.\nGive `--precision fp16`, or leave `--dla` out.")
    if precision != "int8":
        return None
    if site is not None:
        version = site.backend.version
        if not has_dla(version):  # before a calibration, which takes longer than the builder's own word
            raise no_dla(site.backend.title, 0, options.dla)
        check_int8(model, version, options.dla, table=table)
        return version if takes_table(version) else None
    assert options.target is not None
    check_dla_file(model, options.target, options.dla)
    if model.precision == "int8":
        if table:
            raise InputError(f"{model.path} carries its scales.\nGive the FP32 file, or leave the table out.")
        return None
    return max(filter(takes_table, options.target.tensorrt), key=numbers_of)


def _with_table(
    model: OpenModel,
    out: Path,
    options: BuildOptions,
    calibration: CalibrationOptions,
    tensorrt: str,
    progress: Progress,
) -> tuple[BuildOptions, PrecisionReport | None]:
    """Return the options with a calibration table, and how it was made if it had to be: with NAME.int8.onnx.

    Raises InputError for a table that cannot be read, or for images beside it; and for what leaves layers in FP16.
    """
    if (given := _places(calibration)) is not None:
        raise InputError(
            f"`{given}` leaves layers in FP16; INT8 on the DLA of TensorRT {tensorrt} is a table of scales, without "
            f"layers.\nLeave `{given}` out, or build for the GPU."
        )
    if options.calibration_table is not None:
        if calibration.data is not None:
            raise InputError("`--calibration-table` has the scales that `--data` is for.\nLeave one of the two out.")
        read_table(options.calibration_table)
        return options, None
    release = ".".join(map(str, numbers_of(tensorrt)[:3]))
    path = out.with_name(f"{model.path.stem}.int8.onnx")
    report, _ = calibrated(model, path, replace(calibration, table=f"trt-{release}"), progress=progress)
    return replace(options, calibration_table=report.table), report


def _typed(
    model: OpenModel,
    out: Path,
    options: BuildOptions,
    precision: str,
    calibration: CalibrationOptions,
    progress: Progress,
) -> tuple[OpenModel, PrecisionReport | None]:
    """Return the model in the precision asked for, and how it was made if it had to be: its file is next to `out`."""
    if model.precision == precision:
        if (given := _places(calibration)) is not None:
            raise InputError(
                f"`{given}` chooses layers, and {model.path} is {precision.upper()} already.\nGive the FP32 file that "
                "it was made from, or leave it out."
            )
        return model, None
    if precision == "fp32":
        raise InputError(f"{model.path} is not FP32, and precision cannot be added to it.\nGive the FP32 file.")
    path = out.with_name(f"{model.path.stem}.{precision}.onnx")
    if precision == "fp16":
        engines = None if calibration.tune is None else engines_for("fp16", options)
        report, made = cast(
            model, path, data=calibration.data, state=calibration.state, engines=engines, progress=progress
        )
    else:
        report, made = calibrated(model, path, calibration, build=options, progress=progress)
    return made, report


def _places(calibration: CalibrationOptions) -> str | None:
    """Return the first option given that chooses layers, which stay out of the precision."""
    asked = {
        "--max-drop": calibration.max_drop is not None,
        "--min-sqnr": calibration.min_sqnr is not None,
        "--leave-out": bool(calibration.leave_out),
        "--tune": calibration.tune is not None,
    }
    return next((name for name, is_asked in asked.items() if is_asked), None)
