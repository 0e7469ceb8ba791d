"""Where is what in an image? From a detector's outputs to boxes, and COCO's mean average precision of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.optional import require
from msn_deploy.data.frame import Placement
from msn_deploy.data.labels import ObjectLabels, Objects
from msn_deploy.tasks.boxes import clipped, nms
from msn_deploy.tasks.decoders import Candidates
from msn_deploy.tasks.drawing import boxed, colour_of
from msn_deploy.tasks.heads import Reader, make_reader
from msn_deploy.tasks.task import Given, Outputs, Score

_SAID = 8  # boxes that `text` lists
# The twelve numbers of COCOeval.summarize, in its order; the first is the metric itself.
_SUMMARY = (
    *("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionAnswer:
    """The boxes of one image, the best first.

    boxes: float64 (M, 4), x1, y1, x2, y2 in pixels of the image, inside of it. scores: float64 (M,). labels: int64
    (M,), the index of the class. names: of the classes, one for each box. likeliest: bool (M,), see Candidates. show:
    the score that a box needs to be said, written and drawn; the metric counts the others, too.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    likeliest: NDArray[np.bool_]
    show: float

    @property
    def shown(self) -> list[int]:
        """Return which boxes are said and drawn: those that score enough, each with the best of its classes alone.

        A box whose best class went, since a better box has it, is not said with its second.
        """
        _, first = np.unique(self.boxes, axis=0, return_index=True)
        return [at for at in sorted(first.tolist()) if self.scores[at] >= self.show and self.likeliest[at]]

    def text(self) -> str:
        """Return such as "3 boxes: person 0.91, dog 0.80, dog 0.44"."""
        said = [f"{self.names[at]} {self.scores[at]:.2f}" for at in self.shown]
        if not said:
            return "no boxes"
        more = f" and {len(said) - _SAID} more" if len(said) > _SAID else ""
        return f"{len(said)} box{'es' * (len(said) > 1)}: {', '.join(said[:_SAID])}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return label, score and box (x1, y1, x2, y2) of each box that is shown, as `boxes`."""
        return {
            "boxes": [
                {"label": self.names[at], "score": float(self.scores[at]), "box": self.boxes[at].tolist()}
                for at in self.shown
            ]
        }

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with its boxes, each in its class's colour, with name and score."""
        shown = self.shown[::-1]  # the best on top
        captions = [f"{self.names[at]} {self.scores[at]:.2f}" for at in shown]
        return boxed(image, self.boxes[shown], captions, [colour_of(label) for label in self.labels[shown].tolist()])


class Detection:
    """Objects with their boxes.

    reading: `head`, one of heads.HEADS, and what it lets be said; `score`, what a box has to be above to count (0.001,
    as is usual for the metric); `show`, what it needs to be said and drawn (0.25); `iou`, the overlap beyond which NMS
    drops a box (0.7); `max`, boxes of an image (300). The last two are those of ultralytics' val.
    """

    name: TaskName = "detection"

    def __init__(self, given: Given) -> None:
        self.classes = given.classes
        self.reader = make_reader(given)

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[DetectionAnswer]:
        """Return the boxes of each image.

        Without placements, boxes are in pixels of the frame, or in shares of it where the head gives those. Raises
        InputError for arrays that are not of the head, GateError for numbers that are not finite.
        """
        reader = self.reader
        count = len(placements) if placements is not None else reader.count(outputs)
        if reader.head.of_all and "output" not in reader.outputs and count != 1:
            raise InputError(
                f"{reader.way.model} gives the boxes of one image; {count} were given at once.\nExport it with batch 1."
            )
        return [
            _answer(reader, outputs, at, placements[at] if placements is not None else None, self.classes)
            for at in range(count)
        ]

    def meter(self) -> PrecisionMeter:
        """Return an empty meter. Raises MissingDependency without pycocotools."""
        return PrecisionMeter(self.classes)


def _answer(
    reader: Reader, outputs: Outputs, at: int, placement: Placement | None, classes: Sequence[str]
) -> DetectionAnswer:
    found = reader.candidates(outputs, at)
    boxes, kept = found.boxes, _kept(reader, found)
    if placement is not None:
        boxes = clipped(placement.to_image(boxes), placement.width_px, placement.height_px)
    kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(axis=1)]  # some lie beside the image
    labels = found.labels[kept]
    return DetectionAnswer(
        boxes=boxes[kept],
        scores=found.scores[kept],
        labels=labels,
        names=tuple(classes[label] if classes else str(label) for label in labels.tolist()),
        likeliest=found.likeliest[kept],
        show=reader.show,
    )


def _kept(reader: Reader, found: Candidates) -> NDArray[np.intp]:
    """Return which candidates are left, the best first."""
    if reader.overlap is None:
        return np.argsort(-found.scores, kind="stable")[: reader.most]
    return nms(found.boxes, found.scores, found.labels, overlap=reader.overlap, most=reader.most)


class PrecisionMeter:
    """Mean average precision as COCO defines it, at overlaps from 0.5 to 0.95, measured by pycocotools itself."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._coco = require("pycocotools.coco", step="eval of a detector")
        self._cocoeval = require("pycocotools.cocoeval", step="eval of a detector")
        self._seen: list[tuple[DetectionAnswer, Objects]] = []

    def add(self, answers: Sequence[DetectionAnswer], labels: ObjectLabels) -> None:
        """Count answers; labels: the objects of the same images."""
        self._seen += zip(answers, labels.images, strict=True)

    def score(self) -> Score:
        """Return mAP 0.5:0.95; others: COCO's summary of it. A size or class of which there is no object is left out.

        Raises InputError where there is no object at all.
        """
        if not any((~objects.crowd).any() for _, objects in self._seen):
            raise InputError(
                f"the {len(self._seen)} images have no object in their labels, so that there is no precision.\n"
                "Give data with boxes."
            )
        with redirect_stdout(io.StringIO()):  # it prints what it does; errors are exceptions
            judge = self._cocoeval.COCOeval(self._dataset(of_answers=False), self._dataset(of_answers=True), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        summary = {name: float(value) for name, value in zip(_SUMMARY, judge.stats, strict=True) if value >= 0}
        each_class = judge.eval["precision"][:, :, :, 0, -1]  # overlap, recall, class, any size, at most 100 boxes
        of = {
            name: round(float(values[values >= 0].mean()), 6)
            for name, values in zip(self._classes, np.moveaxis(each_class, 2, 0), strict=True)
            if (values >= 0).any()
        }
        value = summary.pop("mAP")
        return Score(metric="mAP", value=value, samples=len(self._seen), others=summary, per_class=of)

    def _dataset(self, *, of_answers: bool) -> Any:
        """Return answers or labels as pycocotools holds them: a box as x, y, width and height, ids from 1 on."""
        annotations: list[dict[str, Any]] = []
        for image, (answer, objects) in enumerate(self._seen, 1):
            boxes, labels = (answer.boxes, answer.labels) if of_answers else (objects.boxes, objects.labels)
            sides = boxes[:, 2:] - boxes[:, :2]
            areas = sides[:, 0] * sides[:, 1] if of_answers else objects.areas
            crowd = np.zeros(len(boxes), dtype=np.bool_) if of_answers else objects.crowd
            of_image = [
                {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(is_crowd)}
                for label, box, area, is_crowd in zip(
                    labels.tolist(),
                    np.concatenate([boxes[:, :2], sides], axis=1).tolist(),
                    areas.tolist(),
                    crowd.tolist(),
                    strict=True,
                )
            ]
            if of_answers:
                for each, score in zip(of_image, answer.scores.tolist(), strict=True):
                    each["score"] = score
            annotations += of_image
        dataset = self._coco.COCO()
        dataset.dataset = {
            "images": [
                {"id": image, "width": objects.width_px, "height": objects.height_px}
                for image, (_, objects) in enumerate(self._seen, 1)
            ],
            "categories": [{"id": at, "name": name} for at, name in enumerate(self._classes)],
            "annotations": [{"id": at, **each} for at, each in enumerate(annotations, 1)],
        }
        dataset.createIndex()
        return dataset
