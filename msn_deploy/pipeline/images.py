"""Which images suit a model: its own preprocessing where the file carries it, plain 0..1 where it does not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data import Split, load_split

_LOG = logging.getLogger(__name__)


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
