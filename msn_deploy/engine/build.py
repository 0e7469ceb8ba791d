"""How does an ONNX file become an engine file, with a sidecar that says what was built from what?"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from msn_deploy.core.artifacts import Parent, publish, read_sidecar, require_names, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import QUANTISED, TensorSpec
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine.backends import Backend, pick_backend
from msn_deploy.engine.build_log import logger_of
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.dla import DlaPlan, check_int8
from msn_deploy.engine.inspector import (
    Layer,
    count_convs,
    inspect_plan,
    layers_from_log,
    memory_from_log,
    not_quantised,
)
from msn_deploy.engine.tensors import Range
from msn_deploy.engine.trt_build import build_plan, is_weakly_typed
from msn_deploy.engine.trust import trust_built
from msn_deploy.machine.device import DeviceFacts, first_gpu, target_of
from msn_deploy.machine.targets import Target, check_dla, check_precision, find_target
from msn_deploy.model.opened import OpenModel

_RTX_DEFAULT = "rtx-sm86"  # the nearest to Orin of the generations that TensorRT-RTX builds for
_RTX_FP8 = "rtx-sm89"  # the first with FP8
_KEPT_WARNINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build made. Bytes, seconds and counts; None where TensorRT did not tell.

    precision: of the network. inputs, outputs: as the engine has them, None for an open size. ranges: the smallest, the
    best and the largest shape of each input with open sizes. compute_capability: such as "8.6". device: the GPU's
    name, None ahead of time. layers: () if not told. int8_convs, fp8_convs: convolutions that read INT8 and FP8.
    not_int8, not_fp8: convolutions and matrix products of such a network that read something else.
    device_memory_bytes: of one execution context, beside the weights. plugins: names of the libraries that it needs.
    dla: where each layer runs, None without DLA. replicate: which of several, from 1. warnings: the builder's first
    ten.
    """

    path: Path
    backend: str
    backend_version: str
    target: str | None
    compute_capability: str | None
    device: str | None
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, Range]
    plan_bytes: int
    weight_memory_bytes: int | None
    device_memory_bytes: int | None
    layers: tuple[Layer, ...]
    int8_convs: int | None
    not_int8: tuple[Layer, ...]
    fp8_convs: int | None
    not_fp8: tuple[Layer, ...]
    version_compatible: bool
    hardware_compatible: bool
    plugins: tuple[str, ...]
    dla_core: int | None
    dla: DlaPlan | None
    replicate: int
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where an engine is built: by which TensorRT, for which target (None: a GPU here that the table does not know)."""

    backend: Backend
    target: Target | None
    machine: DeviceFacts


def rtx_default(precision: str) -> Target:
    """Return the target that TensorRT-RTX builds for where none is asked for."""
    return find_target(_RTX_FP8 if precision == "fp8" else _RTX_DEFAULT)


def choose_site(options: BuildOptions, precision: str, *, machine: DeviceFacts, backend: Backend | None = None) -> Site:
    """Decide where to build, and refuse what cannot be built there, before any work. backend: chosen if not given.

    Raises InputError for a target that lacks the precision, the DLA core or a promise of compatibility, MissingDevice
    if the engine has to be built on another machine, MissingDependency without a TensorRT.
    """
    target = options.target
    if target is not None:
        check_precision(target, precision)
    backend = backend or pick_backend(options.backend, target, machine=machine)
    if target is None:
        target = rtx_default(precision) if backend.is_rtx else target_of(machine)
        if target is not None:
            check_precision(target, precision)
    if target is not None and options.dla is not None:
        check_dla(target, options.dla)
    check_portable(options, rtx=backend.is_rtx, jetson=machine.jetson is not None)
    return Site(backend=backend, target=target, machine=machine)


def build_engine_file(
    model: OpenModel,
    out: Path,
    *,
    options: BuildOptions,
    site: Site,
    replicate: int = 1,
    progress: Progress = silent,
) -> BuildReport:
    """Build the engine `out` (NAME.engine) and its sidecar NAME.plan.json from an ONNX model.

    Args:
        model: What is built.
        out: The engine, which is written whole or not touched; `check_out` has looked at its name.
        options: What the user chose.
        site: Where it is built, from `choose_site`.
        replicate: Which of several engines of that model.
        progress: Counts to 1.

    Raises:
        InputError: A network that cannot be built, or one of another precision than asked for.
        GateError: More falls back from the DLA than is allowed.
        MissingDevice: The builder lacks the GPU or DLA that it needs.
    """
    backend, target, machine = site.backend, site.target, site.machine
    precision = options.precision or model.precision
    table = options.calibration_table
    if options.dla is not None and precision == "int8":
        check_int8(model, backend.version, options.dla, table=table is not None)
    if table is None or model.precision != "fp32":
        check_typed(model, precision, weak=is_weakly_typed(backend.module), title=backend.title)
    gpu = None if backend.is_rtx or not machine.has_gpu else first_gpu()
    device = gpu.name if gpu else None
    began = time.perf_counter()
    built, messages = build_plan(model, backend, target, precision, options, progress, device=device)
    texts = [text for _, text in messages.texts]
    layers, memory = layers_from_log(texts), memory_from_log(texts)
    device_memory = memory.device_memory_bytes
    if gpu is not None:
        inspected, loaded = inspect_plan(backend.module, logger_of(backend.module)[0], built.plan)
        layers, device_memory = inspected or layers, device_memory if loaded is None else loaded
    capability = gpu.compute_capability if gpu else target.compute_capability if target else None
    report = BuildReport(
        path=out,
        backend=backend.name,
        backend_version=backend.version,
        target=target.name if target else None,
        compute_capability=capability,
        device=device,
        precision=precision,
        inputs=built.inputs,
        outputs=built.outputs,
        ranges=built.ranges,
        plan_bytes=built.plan.nbytes,
        weight_memory_bytes=memory.weight_memory_bytes,
        device_memory_bytes=device_memory,
        layers=layers,
        int8_convs=count_convs(layers, "int8") if layers else None,
        not_int8=not_quantised(layers, "int8") if precision == "int8" else (),
        fp8_convs=count_convs(layers, "fp8") if layers else None,
        not_fp8=not_quantised(layers, "fp8") if precision == "fp8" else (),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        plugins=tuple(path.name for path in options.plugins),
        dla_core=options.dla,
        dla=built.dla,
        replicate=replicate,
        seconds=time.perf_counter() - began,
        warnings=tuple(messages.warnings()[:_KEPT_WARNINGS]),
    )
    messages.start()  # the verbose log of a large network is not worth keeping for the life of the process
    facts = {key: value for key, value in asdict(report).items() if key != "path"}
    sidecar = publish(
        out,
        lambda partial: partial.write_bytes(built.plan),
        kind="engine",
        parents=[model.as_parent(), *_calibrated_on(model, table)],
        versions=["tensorrt_rtx_cu13" if backend.is_rtx else "tensorrt", "onnx"],
        config={**options.as_config(), "precision": precision, "target": report.target, "backend": backend.name},
        facts={**facts, "machine": asdict(machine), "info": None if model.info is None else model.info.to_json()},
    )
    trust_built(sidecar.sha256, out.name)
    progress(1.0, 1.0, "done")
    return report


def check_out(onnx: Path, out: Path) -> None:
    """Refuse before the build what would fail after it: on a device it takes minutes. Raises InputError."""
    if out.suffix != ".engine":
        raise InputError(f"{out} does not end in .engine.\nName the engine, such as `--out {onnx.stem}.engine`.")
    require_names(out)
    if os.path.isdir(out):
        raise InputError(f"{out} is a folder; a file is needed.\nGive the file's name with `--out`.")
    folder = next(each for each in (out.absolute().parent, *out.absolute().parents) if os.path.exists(each))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"{out} cannot be written: no access to {folder}.\nChoose another place with `--out`.")


def check_portable(options: BuildOptions, *, rtx: bool, jetson: bool) -> None:
    """Raise InputError for a promise of compatibility that the builder can't keep."""
    if options.hardware_compatible and jetson:
        raise InputError(
            "`--hardware-compatible` makes a plan for every desktop GPU from Ampere on; JetPack's TensorRT has no such "
            "plans.\nLeave it out, and build on each Jetson."
        )
    if rtx and (options.hardware_compatible or options.version_compatible):
        option = "--hardware-compatible" if options.hardware_compatible else "--version-compatible"
        raise InputError(
            f"TensorRT-RTX has no `{option}`: it finishes every plan on the GPU that loads it, and its builder lacks "
            "the lean runtime.\nLeave it out, or take `--backend tensorrt` on a machine with a GPU."
        )


def check_typed(model: OpenModel, precision: str, *, weak: bool, title: str) -> None:
    """Refuse a file of another precision than asked: all but TensorRT 8 build what the file says.

    weak: the builder takes FP16 from a flag; INT8 without Q/DQ nodes would need a calibrator there too.
    """
    if precision == model.precision or (weak and {precision, model.precision}.isdisjoint(QUANTISED)):
        return
    how = {"int8": "calibrate", "fp8": "calibrate --precision fp8"}.get(precision, "export")
    raise InputError(
        f"{model.path} is an {model.precision.upper()} network; {precision.upper()} was asked for, and "
        f"{title} builds what the file says.\n"
        f"Make that file first with `msn-deploy {how}`."
    )


def _calibrated_on(model: OpenModel, table: Path | None) -> list[Parent]:
    """Return the images whose ranges an INT8 file or a table carries into the engine, and the table itself.

    From the sidecar of those very bytes; a file may come without it.
    """
    path, sha256 = (model.path, model.sha256) if table is None else (table, sha256_of(table))
    own = [] if table is None else [Parent(role="calibration-table", file=table.name, sha256=sha256)]
    try:
        side = read_sidecar(path)
    except InputError:
        return own
    return [*own, *(each for each in side.parents if each.is_data)] if side.sha256 == sha256 else own
