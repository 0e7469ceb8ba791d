"""What does the user choose about a build, and what can't be chosen together?"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import DEFAULT_WORKSPACE_MIB
from msn_deploy.engine.backends import check_backend
from msn_deploy.engine.tensors import InputShapes, Range, shape_ranges
from msn_deploy.machine.targets import Target, check_dla
from msn_deploy.model.opened import OpenModel

DEFAULT_BATCH = 8  # the largest where the file leaves the batch open


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What the user chooses about a build.

    precision: what the file is expected to be; None takes the file's own, which is what decides (only TensorRT 8
    also needs it as a flag). target: None is the GPU of this machine, or rtx-sm86 ahead of time where there is none.
    backend: "auto", "tensorrt" or "tensorrt-rtx". min_batch, opt_batch, batch: the least, the one to be fast at (None:
    the largest) and the largest (None: DEFAULT_BATCH) of inputs whose first axis the file leaves open. shapes: the
    sizes of inputs that leave others open, or whose first axis is not a batch. plugins:
    libraries with operators that TensorRT lacks. workspace_mib: scratch memory of
    the builder, MiB. timing_cache: read if it exists, then written (not on RTX). optimization_level: 0 to 5, None is
    TensorRT's own default. version_compatible: the plan loads in later TensorRT releases too. hardware_compatible: it
    loads on every GPU from Ampere on. dla: the core to build for, with fallback to the GPU; None is the GPU alone.
    max_dla_fallback: share of multiply-accumulates, percent, that may fall back. calibration_table: the scales of INT8
    on a DLA up to TensorRT 10.7, beside the FP32 file. replicates: how many engines.
    """

    precision: str | None = None
    target: Target | None = None
    backend: str = "auto"
    batch: int | None = None
    min_batch: int = 1
    opt_batch: int | None = None
    shapes: tuple[InputShapes, ...] = ()
    plugins: tuple[Path, ...] = ()
    workspace_mib: int = DEFAULT_WORKSPACE_MIB
    timing_cache: Path | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int | None = None
    max_dla_fallback: float | None = None
    calibration_table: Path | None = None
    replicates: int = 1

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if self.most_batch < 1:
            raise InputError(f"a batch of {self.batch} images cannot be built.\nGive `--batch-size` 1 or more.")
        if not 1 <= self.min_batch <= self.best_batch <= self.most_batch:
            raise InputError(
                f"batches of {self.min_batch} (least), {self.best_batch} (fastest) and {self.most_batch} (largest) "
                "images are out of order.\nGive 1 <= `--min-batch` <= `--opt-batch` <= `--batch-size`."
            )
        if self.workspace_mib < 1:
            raise InputError(
                f"{self.workspace_mib} MiB of workspace is too little.\nGive `--workspace-mib` 16 or more."
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level {self.optimization_level} does not exist; 0 to 5 do.")
        if self.replicates < 1:
            raise InputError(f"{self.replicates} engines cannot be built.\nGive `--replicates` 1 or more.")
        if self.replicates > 1 and self.timing_cache is not None:
            raise InputError(
                "`--replicates` shows how much engines differ because kernels are timed anew for each; with a "
                "timing cache they would not be.\nLeave one of `--replicates` and `--timing-cache` away."
            )
        if self.max_dla_fallback is not None and self.dla is None:
            raise InputError("`--max-dla-fallback` limits what leaves the DLA.\nGive `--dla N` with it.")
        if self.calibration_table is not None and (self.dla is None or self.precision not in (None, "int8")):
            raise InputError(
                "`--calibration-table` is for INT8 on a DLA; on the GPU an INT8 file carries its scales.\n"
                "Give `--precision int8 --dla N` with it, or leave it out."
            )
        if self.max_dla_fallback is not None and not 0 <= self.max_dla_fallback <= 100:
            raise InputError(
                f"`--max-dla-fallback {self.max_dla_fallback:g}` is not a share, which is 0 to 100 percent."
            )
        if self.dla is not None and self.target is not None:
            check_dla(self.target, self.dla)

    @property
    def most_batch(self) -> int:
        """The largest batch."""
        return DEFAULT_BATCH if self.batch is None else self.batch

    @property
    def best_batch(self) -> int:
        """The batch that kernels are chosen for."""
        return self.most_batch if self.opt_batch is None else self.opt_batch

    def ranges(self, model: OpenModel) -> dict[str, Range]:
        """Return the range of every input of a model that has open sizes; on DLA every size is fixed.

        Raises InputError for an open size without an option, and for an option without an open size.
        """
        batches = (self.min_batch, self.best_batch, self.most_batch)
        return shape_ranges(
            model.inputs,
            self.shapes,
            batches if self.dla is None else (self.most_batch,) * 3,
            source=str(model.path),
            batch_asked=self.batch is not None or self.opt_batch is not None or self.min_batch > 1,
            one_size=self.dla is not None,
        )

    def meant_for(self, model: OpenModel) -> BuildOptions:
        """Return it without the shapes of inputs that this model does not have, or has with fixed sizes."""
        known = {spec.name for spec in model.inputs if spec.shape is None or None in spec.shape}
        return replace(self, shapes=tuple(each for each in self.shapes if each.name in known))

    def as_config(self) -> dict[str, Any]:
        """Return every option as plain values, for a sidecar."""
        cache = str(self.timing_cache) if self.timing_cache else None
        given: dict[str, Any] = {"batch": self.most_batch, "timing_cache": cache}
        given["shapes"] = [str(each) for each in self.shapes]
        given["plugins"] = [str(each) for each in self.plugins]
        given["calibration_table"] = str(self.calibration_table) if self.calibration_table else None
        return {**asdict(self), **given, "target": self.target.name if self.target else None}


def parse_mib(text: str) -> int:
    """Turn "256", "256MiB" or "1GiB" into MiB. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MiB|GiB|M|G|)", text.strip(), re.I)
    mib = float(found[1]) * (1024 if found[2].upper().startswith("G") else 1) if found else 0.0
    if not mib >= 1:
        raise InputError(
            f"--workspace-mib {text!r} is not a size of 1 MiB or more.\nGive one such as 256, 512MiB or 1GiB."
        )
    return int(mib)
