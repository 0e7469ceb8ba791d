"""`eval` of a generator: its images beside real ones, through the eyes of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.data import to_input
from msn_deploy.pipeline.images import split_for

if TYPE_CHECKING:
    from torch import nn

    from msn_deploy.training.gan_score import Looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the classifier `judge` sees in real test images and in as many that `generator` made.

    fid: Frechet distance of generated to real test images on the judge's features; fid_real: of real training images
    to them, the least that can be hoped for.
    """

    generator: str
    judge: str
    data: str
    samples: int
    judge_accuracy: float
    real: Looks
    generated: Looks
    fid: float
    fid_real: float


def judge(generator: Path, classifier: Path, *, data: str | None = None, samples: int | None = None) -> Judgement:
    """Generate as many images as the classifier's test split has (at most `samples`), seeded, and look at both.

    Raises InputError if one is not what it should be, or if they work on images of another size or kind.
    """
    require("torch", step="eval of a generator")
    import torch

    from msn_deploy.nets.dcgan import latents
    from msn_deploy.training import load_checkpoint
    from msn_deploy.training.gan import generated
    from msn_deploy.training.gan_score import frechet_distance, look

    maker, recipe = _generator(generator)
    eyes, info = load_checkpoint(classifier)
    if info.preprocess is None:
        raise InputError(f"{classifier} is a generator itself.\n`--judge` takes a classifier's checkpoint.")
    _require_same_images(recipe, info.preprocess, generator, classifier)
    real = split_for(info, info.preprocess, data, "test").first(samples)
    learned = split_for(info, info.preprocess, data, "train").first(len(real.labels))
    inputs = latents(len(real.labels), recipe.network_input[0], torch.Generator().manual_seed(1))
    made = generated(maker, inputs)
    (seen_real, of_real), (seen_made, of_made), (_, of_learned) = (
        look(eyes, to_input(images, info.preprocess)) for images in (real.images, made, learned.images)
    )
    return Judgement(
        generator=str(generator),
        judge=str(classifier),
        data=real.source,
        samples=len(real.labels),
        judge_accuracy=float(info.metrics.get("test_accuracy", np.nan)),
        real=seen_real,
        generated=seen_made,
        fid=frechet_distance(of_made, of_real),
        fid_real=frechet_distance(of_learned, of_real),
    )


def _generator(path: Path) -> tuple[nn.Module, Recipe]:
    from msn_deploy.training import load_checkpoint

    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no checkpoint.\n`--judge` looks at what the checkpoint of a generator makes.")
    model, info = load_checkpoint(path)
    recipe = recipe_from_dict(info.recipe, source=str(path))
    if recipe.gan is None:
        raise InputError(f"{path} is a classifier, not a generator.\nLeave `--judge` out to measure its accuracy.")
    return model, recipe


def _require_same_images(recipe: Recipe, prep: Preprocess, generator: Path, classifier: Path) -> None:
    def kind(channels: int, height: int, width: int, fit: str) -> dict[str, Any]:
        return {"images": f"{channels}x{height}x{width}", "fit": fit}

    made = kind(*recipe.input_shape[1:], recipe.fit)
    seen = kind(prep.channels, prep.height_px, prep.width_px, prep.fit)
    if made != seen:
        raise InputError(
            f"{generator} makes {made['images']} images ({made['fit']}), {classifier} looks at {seen['images']} "
            f"({seen['fit']}).\nTrain a judge with the same `input_shape` and `fit`."
        )
