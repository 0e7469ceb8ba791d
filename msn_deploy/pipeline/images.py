"""Which images suit a model, and which does it get to see while its ranges are measured?

Prepared as the file says where it says so, scaled to 0..1 where it does not; a generator takes latents in their place.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data import Split, load_split
from msn_deploy.data.preprocess import PreparedImages
from msn_deploy.data.sources import is_local
from msn_deploy.quant.calibration_checks import check_images, check_labels, examine

_LOG = logging.getLogger(__name__)
_LATENTS = "latents of the standard normal distribution"


def preprocess_for(info: ModelInfo | None, input_shape: Sequence[int | None], *, model: str) -> Preprocess:
    """Return the preprocessing of a model file; without metadata images are scaled to 0..1, which the log says.

    Raises InputError if the input is not an image (N, 1 or 3, H, W), which a generator's latents can look like.
    """
    refuse_generator(info, model=model)
    sizes = input_shape[1:]
    if len(input_shape) != 4 or None in sizes or sizes[0] not in (1, 3):
        text = "x".join("any" if size is None else str(size) for size in input_shape)
        raise InputError(f"{model} takes {text}; images need a fixed N x (1 or 3) x height x width.")
    channels, height, width = (int(size or 0) for size in sizes)
    if info is not None and info.preprocess is not None:
        prep = info.preprocess
        if (prep.channels, prep.height_px, prep.width_px) != (channels, height, width):
            raise InputError(
                f"model wants {channels}x{height}x{width} images, its own preprocessing gives "
                f"{prep.channels}x{prep.height_px}x{prep.width_px}.\n"
                f"{model} was changed after its export; export it again."
            )
        return prep
    _LOG.warning("%s says nothing of its preprocessing: images are resized and scaled to 0..1, no more", model)
    return Preprocess(
        height_px=height, width_px=width, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
    )


def refuse_generator(info: ModelInfo | None, *, model: str) -> None:
    """Raise InputError for a model that makes images and takes none."""
    if info is not None and info.is_generator:
        raise InputError(
            f"{model} is a generator: it takes no images.\n"
            "To rate those that it makes: msn-deploy eval CHECKPOINT --judge CLASSIFIER"
        )


def split_for(info: ModelInfo | None, prep: Preprocess, data: str | None, split: str, *, lazy: bool = False) -> Split:
    """Load the "train" or "test" split of `data`, or of what the model was trained on where `data` is None.

    lazy: as for `load_split`.
    Raises InputError if neither is known, or if the classes are not those of the model.
    """
    source = data or (info.data if info is not None else "")
    if not source:
        raise InputError("the model does not say what it was trained on.\nName the images: `--data NAME|DIR`.")
    loaded = load_split(source, split, **prep.image_size, lazy=lazy)
    if info is not None and info.classes and loaded.classes != info.classes:
        raise InputError(
            f"{source} has {len(loaded.classes)} classes ({', '.join(loaded.classes[:4])}, ...), the model was trained "
            f"on {len(info.classes)} ({', '.join(info.classes[:4])}, ...)."
        )
    return loaded


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
    warnings = (*check_images(facts, info.preprocess if info else None), *check_labels(split.labels, split.classes))
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
