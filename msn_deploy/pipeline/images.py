"""Which images suit a model, and which does it get to see while its ranges are measured?

Prepared as the file says; one that does not say it gets none. A generator takes latents in their place.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, first_line
from msn_deploy.core.model_info import ModelInfo, Preprocess, TaskName, TensorSpec
from msn_deploy.data import Split, load_split
from msn_deploy.data.feeds import FeedSource, ImageSamples, Samples, WholeSamples, is_feeds, open_feeds, runs_of
from msn_deploy.data.names import NAMES
from msn_deploy.data.preparation import PRESETS
from msn_deploy.data.preprocess import PreparedImages, layout_of
from msn_deploy.data.sources import is_local
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.engine.runner import Stateful, sizes_text
from msn_deploy.model.feeds import Feeds, random_feeds
from msn_deploy.model.opened import OpenModel
from msn_deploy.quant.calibration_checks import ENOUGH_SAMPLES, check_images, check_labels, examine

_LOG = logging.getLogger(__name__)
_RANDOM_RUNS = 4
_LATENTS = "latents of the standard normal distribution"


def preprocess_for(info: ModelInfo | None, shape: Sequence[int | None], *, model: str) -> Preprocess:
    """Return how a model file says that images are prepared for its input of that shape.

    Raises InputError if it does not say so, or if the input is not an image (N, 1 or 3, H, W) or (N, H, W, 1 or 3),
    which a generator's latents can look like.
    """
    refuse_generator(info, model=model)
    if layout_of(shape) is None or None in shape[1:]:
        raise InputError(f"{model} takes {sizes_text(shape)}; images need a fixed N x (1 or 3) x height x width.")
    prep = info.preprocess if info is not None else None
    if prep is None:
        own = model if model.endswith(".onnx") else "MODEL.onnx"
        raise InputError(
            f"{model} does not say how images are prepared for it, so that it can't be fed any.\n"
            f"Say it: msn-deploy export {own} --preprocess {'|'.join(PRESETS)} --out NEW.onnx\n"
            "(or --range, --mean, --std, --colour, --fit: docs/guides/preparation.md)."
        )
    if prep.shape != tuple(shape[1:]):
        raise InputError(
            f"model wants {sizes_text(shape[1:])} images, its own preprocessing gives {sizes_text(prep.shape)}.\n"
            f"{model} was changed after its export; export it again."
        )
    return prep


def refuse_generator(info: ModelInfo | None, *, model: str) -> None:
    """Raise InputError for a model that makes images and takes none."""
    if info is not None and info.is_generator:
        raise InputError(
            f"{model} is a generator: it takes no images.\n"
            "To rate those that it makes: msn-deploy eval CHECKPOINT --judge CLASSIFIER"
        )


def split_for(
    info: ModelInfo | None,
    prep: Preprocess,
    data: str | None,
    split: str,
    *,
    task: TaskName | None = None,
    lazy: bool = False,
) -> Split:
    """Load the "train" or "test" split of `data`, or of what the model was trained on where `data` is None.

    task, lazy: as for `load_split`; None: images alone are wanted, with whatever labels there are.
    Raises InputError if neither is known, as `own_data`, or if the classes are not those of the model.
    """
    source = data or own_data(info)
    if not source:
        raise InputError("the model does not say what it was trained on.\nName the images: `--data NAME|DIR`.")
    loaded = load_split(source, split, task=task, **prep.image_size, lazy=lazy)
    if info is not None and info.classes and loaded.classes != info.classes and _is_of_the_task(loaded, info):
        raise InputError(
            f"{source} has other classes than the model was trained on: {_classes_text(loaded.classes)} against "
            f"{_classes_text(info.classes)}.\nFine-tune the model on them first, or give data with the model's classes."
        )
    return loaded


def _classes_text(classes: Sequence[str]) -> str:
    return f"{len(classes)} ({', '.join(classes[:4])}{', ...' * (len(classes) > 4)})"


def own_data(info: ModelInfo | None) -> str:
    """Return the name of the images that a model says it was trained on; "" where it does not say so.

    Raises InputError for a folder, and for what would have to be downloaded: whoever made the file could choose what is
    read here, and what is asked for in the network.
    """
    if info is None or not info.data:
        return ""
    if info.data in NAMES and is_local(info.data):
        return info.data
    why = "would have to be downloaded" if info.data in NAMES else "is not the name of a data set that is known here"
    raise InputError(
        f"the model says that it was trained on {info.data[:200]!r}, which {why}.\n"
        "What only the file says is not read. If you want that: `--data "
        f"{shlex.quote(info.data[:200])}`."
    )


def _is_of_the_task(split: Split, info: ModelInfo) -> bool:
    """Whether the classes of data have to be those of a model: not of images alone, nor where they only tell groups."""
    return split.task not in (None, "embedding") and info.task in ("", split.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationInputs:
    """What a network is measured on, and what the records say of it.

    inputs: of the network. parents: the data as parent, none for latents. source: name, folder or file. seed: what the
    samples were drawn by, None for evenly spread. preprocess, facts: as dicts, empty for other data. warnings:
    what is doubtful about them.
    """

    samples: Samples
    inputs: tuple[TensorSpec, ...]
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
            "images": self.parents[0].sha256 if self.parents else self.source,
            "samples": {"count": len(self.samples), "seed": self.seed},
            "preprocessing": self.preprocess,
        }

    def runs(self, count: int, *, most: int) -> Iterator[Feeds]:
        """Yield feeds for whole runs of up to `most` samples, of the first `count` of them."""
        return runs_of(islice(self.samples, count), self.inputs, self.samples.rows, most=most)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Samples of a sequence, with the state that the network has reached before each of them."""

    source: FeedSource
    network: Stateful

    @property
    def rows(self) -> Collection[str]:
        """The inputs of which a sample is a row; of the state it is the whole."""
        return self.source.rows

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the samples in order; each file is a sequence of its own, and begins with zeros."""
        starts = self.source.starts
        for at, sample in enumerate(self.source):
            if at in starts:
                self.network.reset()
            yield self.network.completed(sample)
            self.network.run(sample)


def calibration_inputs(
    model: OpenModel,
    data: str | None,
    *,
    samples: int,
    seed: int | None = None,
    state: Mapping[str, str] | None = None,
) -> CalibrationInputs:
    """Return `samples` feeds or training images of `data`, spread evenly or drawn by `seed`; for a generator, latents.

    data: None takes what the model was trained on. state: outputs of FP32 that become inputs of the next sample; the
    first `samples` feeds are taken then, in order.
    Raises InputError for data that is not there or does not fit, and for what can't calibrate a network.
    """
    info, path = model.info, str(model.path)
    if state:
        return _in_sequence(model, data, samples, seed, state)
    if is_feeds(data):
        assert data is not None
        return _fed(open_feeds(data, model.inputs).first(samples, seed=seed), seed)
    if info is not None and info.is_generator:
        if data is not None:
            raise InputError(f"{path} is a generator: it is calibrated on latents.\nLeave out `--data`.")
        name, shape = model.only_input
        latents = np.random.default_rng(seed or 0).standard_normal((samples, *(size or 1 for size in shape[1:])))
        return CalibrationInputs(
            samples=ImageSamples(name, latents.astype(np.float32)), inputs=model.inputs, parents=(), source=_LATENTS,
            seed=seed or 0, preprocess={}, facts={}, warnings=(),
        )  # fmt: skip
    spec = _image_input(model)
    prep = preprocess_for(info, spec.shape or (), model=path)
    split = split_for(info, prep, data, "train", lazy=True).first(samples, seed=seed)
    facts = examine(PreparedImages(split.images, replace(prep, layout="NCHW")))
    warnings = (*check_images(facts, prep), *check_labels(split.labels, split.classes))
    for doubt in warnings:
        _LOG.warning("%s", doubt)
    prepared = PreparedImages(split.images, prep, spec.dtype)
    return CalibrationInputs(
        samples=ImageSamples(spec.name, prepared),
        inputs=model.inputs,
        parents=(split.as_parent(),),
        source=split.source,
        seed=seed,
        preprocess=prep.to_dict(),
        facts=asdict(facts),
        warnings=warnings,
    )


def random_inputs(inputs: Sequence[TensorSpec]) -> CalibrationInputs:
    """Return a few seeded random runs, where there is no data. Raises InputError for an input of no known rank."""
    feeds = [random_feeds(inputs, seed=seed) for seed in range(_RANDOM_RUNS)]
    return CalibrationInputs(
        samples=WholeSamples(feeds), inputs=tuple(inputs), parents=(), source="seeded random numbers", seed=None,
        preprocess={}, facts={}, warnings=(),
    )  # fmt: skip


def _fed(source: FeedSource, seed: int | None) -> CalibrationInputs:
    """Look through feeds once: their values are finite, and not all the same. Raises InputError."""
    distinct = {hashlib.blake2b(b"".join(each.tobytes() for each in sample.values())).digest() for sample in source}
    count = len(source)
    if count > 1 and len(distinct) == 1:
        raise InputError(f"all {count} samples of {source.source} are the same.\nGive real, different ones.")
    warnings = [f"only {len(distinct)} of {count} samples are different"] * (10 * len(distinct) <= 9 * count)
    if count < ENOUGH_SAMPLES:
        warnings.append(f"{count} samples are few; {ENOUGH_SAMPLES} or more give steadier scales")
    for doubt in warnings:
        _LOG.warning("%s", doubt)
    return CalibrationInputs(
        samples=source, inputs=source.inputs, parents=(source.as_parent(),), source=source.source, seed=seed,
        preprocess={}, facts={"samples": count, "distinct": len(distinct)}, warnings=tuple(warnings),
    )  # fmt: skip


def _in_sequence(
    model: OpenModel, data: str | None, samples: int, seed: int | None, state: Mapping[str, str]
) -> CalibrationInputs:
    network = Stateful(run_on_one_thread(model.proto), state)
    if not is_feeds(data) or data is None:
        names = ", ".join(f"{spec.name}=..." for spec in network.inputs)
        raise InputError(
            "`--state` takes samples in order.\n"
            f"Give them as `--data FEEDS.npz`, saved by numpy.savez(FILE, {names}); each file is a sequence."
        )
    if seed is not None:
        raise InputError("`--state` takes samples in order, and `--seed` draws them.\nLeave out `--seed`.")
    given = _fed(open_feeds(data, network.inputs).beginning(samples), None)
    assert isinstance(given.samples, FeedSource)
    fixed = next((spec.shape[0] for spec in network.inputs if spec.name in given.samples.rows and spec.shape), None)
    if (fixed or 1) > 1:
        raise InputError(f"{model.path} takes {fixed} samples at once; `--state` is for one at a time.")
    return replace(given, samples=_Sequence(given.samples, network), inputs=model.inputs,
                   preprocess={"state": [f"{made}={taken}" for made, taken in state.items()]})  # fmt: skip


def _image_input(model: OpenModel) -> TensorSpec:
    """Return the image input of a network. Raises InputError that says what to give to any other network."""
    spec = model.inputs[0]
    if len(model.inputs) == 1 and layout_of(spec.shape or ()) and spec.dtype in ("float32", "float16", "uint8"):
        return spec
    text = ", ".join(f"{each.name} ({each.dtype} of {sizes_text(each.shape)})" for each in model.inputs)
    names = ", ".join(f"{each.name}=..." for each in model.inputs)
    raise InputError(
        f"{model.path} takes {text}: not N x (1 or 3) x height x width, so not images.\n"
        f"Give arrays: `--data FEEDS.npz`, saved by numpy.savez(FILE, {names}); the first axis counts the samples."
    )


def has_inputs(info: ModelInfo | None, data: str | None) -> bool:
    """Whether there is something to measure on: data was named, or the model's own is on this machine."""
    if data is not None or (info is not None and info.is_generator):
        return True
    try:
        return bool(own_data(info))
    except InputError as cause:
        _LOG.warning("%s", first_line(cause))
        return False
