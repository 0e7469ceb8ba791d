"""Which class is each pixel of an image? From scores or labels to a mask, and how well masks match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.data.labels import IGNORED
from msn_deploy.tasks.drawing import Colour, colour_of, enlarged, tinted, with_legend
from msn_deploy.tasks.maps import bilinear, channels_first, nearest, on_image
from msn_deploy.tasks.task import (
    ENDINGS,
    Given,
    Outputs,
    Score,
    check_reading,
    require_finite,
    the_output,
    threshold_read,
)

_CELLS = 256  # labels and answers are bytes
_NAMED = 5  # classes that a line names


@dataclass(frozen=True, slots=True)
class MaskAnswer:
    """The class of each pixel, uint8 (H, W): an index into `classes`, IGNORED where the network did not look."""

    mask: NDArray[np.uint8]
    classes: tuple[str, ...]

    def shares(self) -> dict[int, float]:
        """Return which share of the pixels each class has, 0 to 1, the largest first; only what is there."""
        counts = np.bincount(self.mask.ravel(), minlength=_CELLS)[:IGNORED]
        order = np.argsort(-counts, kind="stable")
        return {int(at): float(counts[at] / self.mask.size) for at in order if counts[at]}

    def label(self, index: int) -> str:
        """Return the name of a class; one without a name is its index."""
        return self.classes[index] if index < len(self.classes) else str(index)

    def text(self) -> str:
        """Return such as "road 61.2%, car 30.1%, sky 8.7%"."""
        shares = self.shares()
        parts = [f"{self.label(at)} {share:.1%}" for at, share in list(shares.items())[:_NAMED]]
        return ", ".join([*parts, f"{len(shares) - _NAMED} more"] if len(shares) > _NAMED else parts)

    def to_json(self) -> dict[str, Any]:
        """Return the size, and for each class that is there its share of the pixels and COCO's compressed RLE."""
        height, width = self.mask.shape
        segments = [
            {
                "label": self.label(at),
                "index": at,
                "share": round(share, 6),
                "rle": {"size": [height, width], "counts": rle_of(self.mask == at)},
            }
            for at, share in self.shares().items()
        ]
        return {"width": width, "height": height, "segments": segments}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with each class but the background (the class 0, or of that name) in a colour."""
        picture, factor = enlarged(image)
        mask = self.mask.repeat(factor, axis=0).repeat(factor, axis=1)
        entries: list[tuple[str, Colour]] = []
        for at, share in self.shares().items():
            if not _is_background(self.label(at), at):
                picture = tinted(picture, mask == at, colour_of(at))
                entries.append((f"{self.label(at)}  {share:.1%}", colour_of(at)))
        return with_legend(picture, entries)


def _is_background(label: str, index: int) -> bool:
    return label.strip("_ ").lower() in ("background", "bg") or (index == 0 and label == "0")


def rle_of(mask: NDArray[np.bool_]) -> str:
    """Return COCO's compressed run lengths of a mask (H, W), as pycocotools' `mask.decode` reads them.

    Runs of 0 and 1 in turn, column by column, from the third on as the difference to the one before the last, five bits
    to a character.
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(np.concatenate([flat[1:] != flat[:-1], [True]]))
    runs = np.diff(ends, prepend=0)
    runs[3:] -= runs[1:-2].copy()
    text = []
    for run in runs.tolist():
        more = True
        while more:
            five = run & 31
            run >>= 5
            more = run != (-1 if five & 16 else 0)
            text.append(chr(48 + five + 32 * more))
    return "".join(text)


class Segmentation:
    """A class for each pixel.

    Of floats, one channel per class, the largest wins; with a channel less than there are classes, the first class is
    where none of them reaches the threshold. Whole numbers (N, H, W), with an axis of size 1 or without, are the
    classes themselves. Scores of another size than the frame are scaled to it (bilinear), classes too (nearest).

    reading: `output`; `ending`; `layout`, nchw or nhwc, where the sizes do not tell it; `threshold` (0.5), 0 to 1.
    """

    name: TaskName = "segmentation"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": (), "ending": ENDINGS, "layout": ("nchw", "nhwc"), "threshold": ()})
        if len(given.classes) == 1:
            raise InputError(f"{given.model}: a mask has two classes at least.\nName the background, too.")
        self.classes = given.classes
        self._given = given
        self.output, self.ending = the_output(given)
        self.layout: str | None = given.reading.get("layout")
        self.threshold = threshold_read(given)

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[MaskAnswer]:
        """Return the mask of each image: at the frame's size, or with placements at the image's own.

        Raises InputError for outputs that are not of this kind, GateError for numbers that are not finite.
        """
        maps = outputs[self.output]
        require_finite(maps, self._given.model)
        are_labels = self.ending == "argmax" or maps.dtype.kind in "biu"
        maps = self._labels(maps) if are_labels else self._scores(maps)
        frame = self._given.frame or (maps.shape[-2], maps.shape[-1])
        made = []
        for at, each in enumerate(maps):  # one image at a time: scores of the frame's size are large
            mask = nearest(each, frame) if are_labels else self._decided(bilinear(each, frame))
            if placements is not None:
                mask = on_image(mask, placements[at], frame, smooth=False, outside=IGNORED)
            made.append(MaskAnswer(mask, self.classes))
        return made

    def meter(self) -> IouMeter:
        """Return an empty meter."""
        return IouMeter(self.classes)

    def _labels(self, maps: NDArray[Any]) -> NDArray[np.uint8]:
        """Return classes as uint8 (N, h, w)."""
        labels = channels_first(maps, None, (1,), model=self._given.model, wanted="labels are one for each pixel")[:, 0]
        low, high = labels.min(initial=0), labels.max(initial=0)
        if low < 0 or high >= IGNORED:
            raise InputError(f"{self._given.model} gives labels from {low} to {high}; classes are 0 to {IGNORED - 1}.")
        if "threshold" in self._given.reading or "layout" in self._given.reading:
            raise InputError(f"{self._given.model} gives labels: `--read threshold` and `layout` are of scores.")
        return labels.astype(np.uint8)

    def _scores(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Return floats as (N, C, h, w); C: one for each class, or for each but the first."""
        known, layout = len(self.classes), self.layout
        softmax = self.ending in ("softmax", "log-softmax")
        counts: set[int] = {known, known - 1} - ({known - 1} if softmax else set())
        wanted = f"for {known} classes there have to be {known}{'' if softmax else f' or {known - 1}'} channels"
        if not known:
            counts, wanted = set(range(1, IGNORED + 1)), f"there have to be 1 to {IGNORED} channels"
            if layout is None and maps.ndim == 4 and maps.shape[1] > maps.shape[3]:
                raise InputError(
                    f"{self._given.model} gives {'x'.join(map(str, maps.shape[1:]))} numbers per image; where the "
                    "channels are is not said.\nSay it: msn-deploy export ... --read layout=nchw|nhwc, or --classes"
                )
        elif self._given.named:  # it knows why it has more
            counts |= set(range(known, IGNORED + 1)) if not counts & {*maps.shape[1:2], *maps.shape[3:]} else set()
        scores = channels_first(maps, layout, counts - {0}, model=self._given.model, wanted=wanted)
        if scores.shape[1] > 1 and scores.shape[1] != known - 1 and "threshold" in self._given.reading:
            raise InputError(f"{self._given.model} has a channel for each class: there is nothing to hold a threshold.")
        if scores.shape[1] in (1, known - 1) and self.ending == "unknown":
            raise InputError(
                f"{self._given.model}: its graph is not here to tell probabilities from logits.\n"
                "Say it: msn-deploy export ... --read ending=sigmoid|logits"
            )
        return scores

    def _decided(self, scores: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel (h, w) from scores (C, h, w)."""
        if len(scores) != 1 and len(scores) != len(self.classes) - 1:
            likeliest: NDArray[np.uint8] = scores.argmax(axis=0).astype(np.uint8)
            return likeliest
        least = self.threshold
        if self.ending == "logits":
            least = math.log(least / (1 - least))
        return np.where(scores.max(axis=0) < least, 0, 1 + scores.argmax(axis=0)).astype(np.uint8)


class IouMeter:
    """Intersection over union of each class, over the pixels of all images; mIoU is their mean.

    Counted are the classes that are in the labels or in the answers, as PASCAL VOC and MMSegmentation do it; pixels
    labelled IGNORED are not. mean_accuracy: of the pixels of each class, the mean of the shares that are right.
    mean_dice: 2 |A and B| / (|A| + |B|), the mean over the same classes as mIoU.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._cells = np.zeros(_CELLS * _CELLS, dtype=np.int64)  # label, answer
        self._samples = 0

    def add(self, answers: Sequence[MaskAnswer], labels: Any) -> None:
        """Count masks; labels: uint8 (N, H, W, 1). Raises InputError for masks of another size."""
        for answer, label in zip(answers, np.asarray(labels), strict=True):
            if label.shape[:2] != answer.mask.shape:
                raise InputError(f"a mask of {answer.mask.shape} does not fit labels of {label.shape[:2]} pixels.")
            cells = label[..., 0].astype(np.intp) * _CELLS + answer.mask
            self._cells += np.bincount(cells.ravel(), minlength=_CELLS * _CELLS)
            self._samples += 1

    def score(self) -> Score:
        """Return the mIoU. Raises InputError where the labels name no pixel, or classes that there are not."""
        cells = self._cells.reshape(_CELLS, _CELLS)[:IGNORED, :IGNORED].astype(np.float64)
        right, labelled, answered = cells.diagonal(), cells.sum(1), cells.sum(0)
        there = np.flatnonzero(labelled + answered).tolist()
        last = int(np.flatnonzero(labelled).max(initial=-1))
        if last < 0:
            raise InputError("all pixels are labelled as ignored: there is no mIoU.")
        if last >= len(self._classes):
            raise InputError(f"the labels go up to class {last}; there are {len(self._classes)} classes.")
        both = labelled + answered
        iou = right[there] / (both - right)[there]
        names = [self._classes[at] if at < len(self._classes) else str(at) for at in there]
        seen = labelled > 0
        return Score(
            metric="mIoU",
            value=float(iou.mean()),
            samples=self._samples,
            others={
                "pixel_accuracy": float(right.sum() / labelled.sum()),
                "mean_accuracy": float((right[seen] / labelled[seen]).mean()),
                "mean_dice": float((2 * right[there] / both[there]).mean()),
            },
            per_class={name: round(float(value), 6) for name, value in zip(names, iou, strict=True)},
        )
