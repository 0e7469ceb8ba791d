"""`export --nms`: NMS at the end of the file, proved on the outputs of the file without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.model.feeds import Feeds
from msn_deploy.model.opened import OpenModel, with_info
from msn_deploy.pipeline.evaluate import given_of
from msn_deploy.pipeline.source import in_memory, in_ort
from msn_deploy.tasks.boxes import iou
from msn_deploy.tasks.detection import Detection, DetectionAnswer

_SAME_IOU, _SAME_SCORE = 0.999, 1e-4
_LEAST_SAME = 0.99  # float32 decides otherwise than float64 where two boxes overlap by just as much as is allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class SameBoxes:
    """How many boxes the file with NMS gives that NMS in numpy keeps of the outputs of the file without.

    boxes: the larger of both numbers. same: of one class, with IoU above 0.999 and scores within 1e-4.
    """

    boxes: int
    same: int


def nms_in_graph(
    file: OpenModel, info: ModelInfo, feeds: Sequence[Feeds], *, source: str
) -> tuple[OpenModel, ModelInfo, SameBoxes]:
    """Return a detector's file with NMS in it, what it says of itself then, and how far it gives the same boxes.

    Raises InputError for what is not a detector that needs NMS, GateError where more than 1 % of the boxes differ.
    """
    from msn_deploy.graph.nms import with_nms  # after the packages were asked for, which it imports

    if not info.task:
        raise InputError(f"`--nms` is for detectors, and {source} says no task.\nSay it: `--task detection`.")
    if info.task != "detection":
        raise InputError(f"`--nms` is for detectors, and the task of {source} is {info.task}.\nLeave out `--nms`.")
    graph, reading = with_nms(file.proto, given_of(source, info, file.outputs, file))
    new = replace(info, reading=reading)
    made = in_memory(graph, with_info(graph, new))
    before, after = (
        Detection(given_of(source, said, each.outputs, each)).answers(in_ort(each)(feeds))
        for each, said in ((file, info), (made, new))
    )
    pairs = list(zip(before, after, strict=True))
    found = SameBoxes(
        boxes=sum(max(len(one.labels), len(other.labels)) for one, other in pairs),
        same=sum(_same(one, other) for one, other in pairs),
    )
    if found.same < _LEAST_SAME * found.boxes:
        raise GateError(
            f"{source}: {found.same} of {found.boxes} boxes of the file with NMS are those of NMS in numpy.\n"
            "Nothing was written. Leave out `--nms`."
        )
    return made, new, found


def _same(one: DetectionAnswer, other: DetectionAnswer) -> int:
    alike = iou(one.boxes, other.boxes) > _SAME_IOU
    alike &= one.labels[:, np.newaxis] == other.labels
    alike &= np.abs(one.scores[:, np.newaxis] - other.scores) <= _SAME_SCORE
    return int(min(alike.any(axis=0).sum(), alike.any(axis=1).sum()))
