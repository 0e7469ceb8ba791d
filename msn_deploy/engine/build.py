"""How does an ONNX file become an engine file, with a sidecar that says what was built from what?"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import Parent, publish, read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import trust
from msn_deploy.engine.backends import Backend, check_backend, must_build_elsewhere, needs_device, pick_backend
from msn_deploy.engine.build_log import count_int8_convs, layer_rows, weight_memory_bytes
from msn_deploy.engine.device import DeviceFacts, target_of, what_machine
from msn_deploy.engine.onnx_file import OnnxFile, read_onnx
from msn_deploy.engine.targets import Target, check_precision, find_target
from msn_deploy.engine.trt_build import build_plan, is_weakly_typed

RTX_DEFAULT = "rtx-sm86"  # the nearest to Orin of the generations that TensorRT-RTX builds for
_KEPT_WARNINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What the user chooses about a build.

    precision: what the file is expected to be; None takes the file's own, which is what decides (only TensorRT 8
    also needs it as a flag). target: None is the GPU of this machine, or rtx-sm86 ahead of time where there is none.
    backend: "auto", "tensorrt" or "tensorrt-rtx". batch: the largest, images; used where the file leaves it open.
    workspace_mib: scratch memory of the builder, MiB. timing_cache: read if it exists, then written (not on RTX).
    optimization_level: 0 to 5, None is TensorRT's own default.
    """

    precision: str | None = None
    target: Target | None = None
    backend: str = "auto"
    batch: int = 8
    workspace_mib: int = 256
    timing_cache: Path | None = None
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if self.batch < 1:
            raise InputError(f"a batch of {self.batch} images cannot be built.\nGive `--batch` 1 or more.")
        if self.workspace_mib < 1:
            raise InputError(
                f"{self.workspace_mib} MiB of workspace is too little.\nGive `--workspace-mib` 16 or more."
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level {self.optimization_level} does not exist; 0 to 5 do.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build made. Bytes, seconds and counts; None where TensorRT did not tell.

    precision: of the network. compute_capability: such as "8.6". int8_convs: convolutions that read INT8.
    warnings: the builder's first ten.
    """

    path: Path
    backend: str
    backend_version: str
    target: str | None
    compute_capability: str | None
    precision: str
    input_shape: tuple[int, ...]
    plan_bytes: int
    weight_memory_bytes: int | None
    layers: int | None
    int8_convs: int | None
    seconds: float
    warnings: tuple[str, ...] = ()


def build_engine_file(
    onnx: Path,
    out: Path,
    *,
    options: BuildOptions,
    progress: Progress = silent,
    backend: Backend | None = None,
    machine: DeviceFacts | None = None,
) -> BuildReport:
    """Build the engine `out` (NAME.engine) and its sidecar NAME.plan.json from an ONNX file.

    backend, machine: found out if not given. `progress` counts to 1.
    Raises InputError for a file, target or precision that cannot be built, MissingDevice if the engine has to be
    built on another machine, MissingDependency without a TensorRT. `out` is written whole, or not touched.
    """
    _check_out(onnx, out)
    model = read_onnx(onnx, step="build-engine")
    precision = options.precision or model.precision
    target, machine = options.target, machine or what_machine()
    if target is not None:
        check_precision(target, precision)
        if backend is None and must_build_elsewhere(target, options.backend, machine):
            _check_typed(model, precision, weak=target.weakly_typed, title="TensorRT 10 and later")
            raise needs_device(target, onnx=onnx, out=out, precision=precision)
    backend = backend or pick_backend(options.backend, target, machine=machine)
    if target is None:
        target = find_target(RTX_DEFAULT) if backend.is_rtx else target_of(machine)
    if target is not None:
        check_precision(target, precision)
    _check_typed(model, precision, weak=is_weakly_typed(backend.module), title=backend.title)
    began = time.perf_counter()
    plan, shape, messages = build_plan(model, backend, target, precision, options, progress)
    texts = [text for _, text in messages.texts]
    rows = layer_rows(texts)
    report = BuildReport(
        path=out,
        backend=backend.name,
        backend_version=backend.version,
        target=target.name if target else None,
        compute_capability=target.compute_capability if target else None,
        precision=precision,
        input_shape=shape,
        plan_bytes=plan.nbytes,
        weight_memory_bytes=weight_memory_bytes(texts),
        layers=len(rows) or None,
        int8_convs=count_int8_convs(rows) if rows else None,
        seconds=time.perf_counter() - began,
        warnings=tuple(messages.warnings()[:_KEPT_WARNINGS]),
    )
    messages.start()  # the verbose log of a large network is not worth keeping for the life of the process
    facts = {key: value for key, value in asdict(report).items() if key != "path"}
    sidecar = publish(
        out,
        lambda partial: partial.write_bytes(plan) and None,
        kind="engine",
        parents=[Parent(role="onnx", file=onnx.name, sha256=model.sha256), *_calibrated_on(model)],
        versions=["tensorrt_rtx_cu13" if backend.is_rtx else "tensorrt", "onnx"],
        config={**_config(options), "precision": precision, "target": report.target, "backend": backend.name},
        facts={**facts, "machine": asdict(machine), "info": model.info},
    )
    trust.add_built(sidecar.sha256, out.name)
    progress(1.0, 1.0, "done")
    return report


def _check_out(onnx: Path, out: Path) -> None:
    """Refuse before the build what would fail after it: on a device it takes minutes."""
    if out.suffix != ".engine":
        raise InputError(f"{out} does not end in .engine.\nName the engine, such as `--out {onnx.stem}.engine`.")
    if out.is_dir():
        raise InputError(f"{out} is a folder; a file is needed.\nGive the file's name with `--out`.")
    folder = next(each for each in (out.absolute().parent, *out.absolute().parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{out} cannot be written: no access to {folder}.\nChoose another place with `--out`.")


def _check_typed(model: OnnxFile, precision: str, *, weak: bool, title: str) -> None:
    """Refuse a file of another precision than asked: all but TensorRT 8 build what the file says.

    weak: the builder takes FP16 from a flag; INT8 without Q/DQ nodes would need a calibrator there too.
    """
    if precision == model.precision or (weak and "int8" not in (precision, model.precision)):
        return
    raise InputError(
        f"{model.path} is an {model.precision.upper()} network; {precision.upper()} was asked for, and "
        f"{title} builds what the file says.\n"
        f"Make that file first with `msn-deploy {'calibrate' if precision == 'int8' else 'export'}`."
    )


def _calibrated_on(model: OnnxFile) -> list[Parent]:
    """Return the images whose ranges an INT8 file carries into the engine, from the sidecar of those very bytes."""
    try:
        side = read_sidecar(model.path)
    except InputError:  # a file that came without its sidecar
        return []
    return [parent for parent in side.parents if parent.is_data] if side.sha256 == model.sha256 else []


def _config(options: BuildOptions) -> dict[str, Any]:
    cache = str(options.timing_cache) if options.timing_cache else None
    return {**asdict(options), "timing_cache": cache}
