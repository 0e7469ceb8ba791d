"""What does a model get to see while its ranges are measured: training images, or a generator's latents?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.data.preprocess import PreparedImages
from msn_deploy.data.sources import is_local
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.quant.calibration_checks import check_images, check_labels, examine

_LOG = logging.getLogger(__name__)
_LATENTS = "latents of the standard normal distribution"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationInputs:
    """Inputs (N, ...), float32, read as they are sliced, and what the records say of them.

    parents: the images as parent, none for latents. source: name or folder. seed: what they were drawn by, None for
    evenly spread. preprocess, facts: as dicts, empty for latents. warnings: what is doubtful about them.
    """

    inputs: Any
    parents: tuple[Parent, ...]
    source: str
    seed: int | None
    preprocess: dict[str, Any]
    facts: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """The parts of a calibration cache's key that tell these inputs from others."""
        return {
            "images": self.parents[0].sha256 if self.parents else _LATENTS,
            "samples": {"count": len(self.inputs), "seed": self.seed},
            "preprocessing": self.preprocess,
        }


def calibration_inputs(
    info: ModelInfo | None,
    shape: Sequence[int | None],
    data: str | None,
    *,
    samples: int,
    seed: int | None = None,
    model: str,
) -> CalibrationInputs:
    """Return `samples` training images of `data`, spread evenly or drawn by `seed`; for a generator, latents.

    shape: of the model's input. data: None takes what the model was trained on. model: its file, for messages.
    Raises InputError for data that is not there, and for images that can't calibrate a network.
    """
    if info is not None and info.is_generator:
        if data is not None:
            raise InputError(f"{model} is a generator: it is calibrated on latents.\nLeave `--data` away.")
        latents = np.random.default_rng(seed or 0).standard_normal((samples, *(size or 1 for size in shape[1:])))
        return CalibrationInputs(
            inputs=latents.astype(np.float32), parents=(), source=_LATENTS, seed=seed or 0, preprocess={}, facts={},
            warnings=(),
        )  # fmt: skip
    prep = preprocess_for(info, shape, model=model)
    split = split_for(info, prep, data, "train", lazy=True).first(samples, seed=seed)
    images = PreparedImages(split.images, prep)
    facts = examine(images)
    warnings = (*check_images(facts, info and info.preprocess), *check_labels(split.labels, split.classes))
    for doubt in warnings:
        _LOG.warning("%s", doubt)
    return CalibrationInputs(
        inputs=images,
        parents=(split.as_parent(),),
        source=split.source,
        seed=seed,
        preprocess=asdict(prep),
        facts=asdict(facts),
        warnings=warnings,
    )


def has_inputs(info: ModelInfo | None, data: str | None) -> bool:
    """Whether there is something to measure on: data was named, or the model's own is on this machine."""
    return data is not None or (info is not None and (info.is_generator or (bool(info.data) and is_local(info.data))))
