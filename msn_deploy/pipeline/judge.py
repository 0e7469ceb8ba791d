"""`eval` of a generator: its images beside real ones, through the eyes of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
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
    to them, the least that can be hoped for. features: what they are, and what they can't be compared with.
    images: the real ones, by their digests. judge_accuracy: on its test split, 0 to 1; None where its checkpoint
    does not say.
    """

    generator: str
    judge: str
    data: str
    images: tuple[Parent, ...]
    samples: int
    features: str
    judge_accuracy: float | None
    real: Looks
    generated: Looks
    fid: float
    fid_real: float


def judge(
    generator: Path, classifier: Path, *, data: str | None = None, samples: int | None = None,
    threads: int | None = None, progress: Progress = silent,
) -> Judgement:  # fmt: skip
    """Generate as many images as the classifier's test split has (at most `samples`), seeded, and look at both.

    Raises InputError if one is not what it should be, if they work on images of another size or kind, or if they were
    trained on other data and `data` does not say which images both are compared with.
    """
    torch = require("torch", step="eval of a generator")
    from msn_deploy.nets.dcgan import latents
    from msn_deploy.training import load_checkpoint
    from msn_deploy.training.gan import generated
    from msn_deploy.training.gan_score import frechet_distance, look

    if threads is not None:
        torch.set_num_threads(threads)
    maker, recipe = _generator(generator)
    eyes, info = load_checkpoint(classifier)
    if info.preprocess is None:
        raise InputError(f"{classifier} is a generator itself.\n`--judge` takes a classifier's checkpoint.")
    _require_same_images(recipe, info.preprocess, generator, classifier)
    if data is None and recipe.data != info.data:
        raise InputError(
            f"{generator} was trained on {recipe.data}, {classifier} on {info.data}.\n"
            "If that is the same, or meant: name the real images with `--data NAME|DIR`."
        )
    real = split_for(info, info.preprocess, data, "test").first(samples)
    learned = split_for(info, info.preprocess, data, "train").first(len(real.labels))
    inputs = latents(len(real.labels), recipe.network_input[0], torch.Generator().manual_seed(1))
    made = generated(maker, inputs)
    seen = []
    for done, images in enumerate((real.images, made, learned.images)):
        progress(done, 3, f"judging {generator.name}")
        seen.append(look(eyes, to_input(images, info.preprocess)))
    (seen_real, of_real), (seen_made, of_made), (_, of_learned) = seen
    return Judgement(
        generator=str(generator),
        judge=str(classifier),
        data=real.source,
        images=(real.as_parent(), learned.as_parent()),
        samples=len(real.labels),
        features=f"{of_made.shape[1]} inputs of the last layer of {info.recipe['name']}; no Inception FID or score",
        judge_accuracy=info.metrics.get("test_accuracy"),
        real=seen_real,
        generated=seen_made,
        fid=frechet_distance(of_made, of_real),
        fid_real=frechet_distance(of_learned, of_real),
    )


def _generator(path: Path) -> tuple[nn.Module, Recipe]:
    from msn_deploy.training import load_checkpoint

    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a checkpoint.\n`--judge` looks at what the checkpoint of a generator makes.")
    model, info = load_checkpoint(path)
    recipe = recipe_from_dict(info.recipe, source=str(path))
    if recipe.gan is None:
        raise InputError(f"{path} is a classifier, not a generator.\nLeave `--judge` out to measure its accuracy.")
    return model, recipe


def _require_same_images(recipe: Recipe, prep: Preprocess, generator: Path, classifier: Path) -> None:
    if recipe.image_size != prep.image_size:
        made, seen = (
            "{channels}x{height_px}x{width_px} images ({fit})".format(**each.image_size) for each in (recipe, prep)
        )
        raise InputError(
            f"{generator} makes {made}, {classifier} looks at {seen}.\n"
            "Train a judge with the same `input_shape` and `fit`."
        )
