"""From a network's outputs, a run at a time, and the labels of all images to the metric of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msn_deploy.core.model_info import Preprocess
from msn_deploy.data.frame import Placement, placement
from msn_deploy.data.labels import ObjectLabels
from msn_deploy.tasks.task import Outputs, Score, Task


def score_of(
    task: Task,
    labels: Any,
    prep: Preprocess,
    made: Iterable[tuple[int, Outputs]],
    *,
    see: Callable[[Sequence[Any]], None] = lambda _: None,
) -> Score:
    """Return the metric of outputs that come a run at a time, each with how many images it is of.

    labels: of all images, as `Split.labels`; where runs are of more images than there are labels, the last was filled
    up. see: is handed the answers of each run.
    """
    meter, at = task.meter(), 0
    for count, outputs in made:
        here = labels[at : at + count]
        if len(here) < count:  # what has no row for each image is that of the task to sort out
            rows = {name for name, array in outputs.items() if array.shape[:1] == (count,)}
            outputs = {name: array[: len(here)] if name in rows else array for name, array in outputs.items()}
        answers = task.answers(outputs, placements_of(here, prep))
        meter.add(answers, here)
        see(answers)
        at += count
    return meter.score()


def placements_of(labels: Any, prep: Preprocess) -> list[Placement] | None:
    """Return where images are in a network's frame, where their labels are positions in them."""
    if not isinstance(labels, ObjectLabels):
        return None
    return [placement(each.width_px, each.height_px, prep) for each in labels.images]
