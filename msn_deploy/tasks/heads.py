"""Which head does a detector have? Said in its file, or told by its outputs where only one head gives such."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

import numpy as np

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.tasks import decoders
from msn_deploy.tasks.boxes import BoxFormat
from msn_deploy.tasks.decoders import NO_FRAME, Background, Candidates, Decode, PerBox, Units, Way
from msn_deploy.tasks.task import Given, Outputs, check_reading, numbers_read, require_finite

Fits = Callable[[tuple[int | None, ...], int], bool]
"""Whether an output of that shape can have a role, for a number of classes; 0: not known."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one output of a head is.

    floats: whether it is of floats; None: of either. along: the axis of the boxes, which are as many in each output.
    """

    rank: int
    fits: Fits
    floats: bool | None = True
    optional: bool = False
    along: int | None = None

    def suits(self, spec: TensorSpec) -> bool:
        """Whether an output has the rank and type for it."""
        is_float = spec.dtype.startswith("float")
        return spec.shape is not None and len(spec.shape) == self.rank and self.floats in (None, is_float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One way in which detectors give what they see.

    options: what can be said of it in `reading`, and what is usual. suppresses: whether NMS comes after it. of_all:
    whether its outputs have no row for each image.
    """

    decode: Decode
    roles: Mapping[str, Role]
    options: Mapping[str, Any] = field(default_factory=dict)
    suppresses: bool = False
    of_all: bool = False


def _is(size: int | None, wanted: int) -> bool:
    return size is None or size == wanted


def _is_yolov5(shape: tuple[int | None, ...], classes: int) -> bool:
    return _is(shape[2], 5 + classes) if classes else (shape[2] or 6) > 5


def _is_yolov8(shape: tuple[int | None, ...], classes: int) -> bool:
    sizes = shape[1:]
    return any(_is(size, 4 + classes) for size in sizes) if classes else all((size or 5) > 4 for size in sizes)


def _is_map(shape: tuple[int | None, ...], classes: int) -> bool:
    return _is(shape[1], 4 + classes) if classes else (shape[1] or 5) > 4


def _is_scores(shape: tuple[int | None, ...], classes: int) -> bool:
    return shape[2] in (None, classes, classes + 1) if classes else shape[2] != 4


def _lasts(size: int) -> Fits:
    return lambda shape, classes: _is(shape[-1], size)


def _any(shape: tuple[int | None, ...], classes: int) -> bool:
    return True


_BOXES = {"format": "cxcywh", "units": "pixels", "per_box": "all"}
_CORNERS = {"format": "xyxy", "units": "pixels"}
_PAIR = {"boxes": Role(3, _lasts(4), along=1), "scores": Role(3, _is_scores, along=1)}
_SHARES = {"format": "cxcywh", "units": "share", "ending": None}
HEADS: Mapping[str, Head] = {
    "yolov5": Head(decode=decoders.yolov5, roles={"output": Role(3, _is_yolov5)}, options=_BOXES, suppresses=True),
    "yolov8": Head(decode=decoders.yolov8, roles={"output": Role(3, _is_yolov8)}, options=_BOXES, suppresses=True),
    "fcos": Head(
        decode=decoders.fcos,
        roles={"output": Role(4, _is_map)},
        options={"stride": 0.0, "per_box": "all"},
        suppresses=True,
    ),
    "ssd": Head(
        decode=decoders.pair,
        roles=_PAIR,
        options={**_SHARES, "format": "xyxy", "background": "first", "per_box": "all"},
        suppresses=True,
    ),
    "detr": Head(decode=decoders.pair, roles=_PAIR, options={**_SHARES, "background": "last", "per_box": "best"}),
    "rt-detr": Head(decode=decoders.pair, roles=_PAIR, options={**_SHARES, "background": "none", "per_box": "all"}),
    "end-to-end": Head(decode=decoders.rows, roles={"output": Role(3, _lasts(6))}, options=_CORNERS),
    "yolov7-end": Head(
        decode=decoders.rows_with_image, roles={"output": Role(2, _lasts(7))}, options=_CORNERS, of_all=True
    ),
    "efficientnms": Head(
        decode=decoders.lists,
        roles={
            "boxes": Role(3, _lasts(4), along=1),
            "scores": Role(2, _any, along=1),
            "classes": Role(2, lambda shape, classes: shape[1] != 1, floats=None, along=1),
            "count": Role(2, _lasts(1), floats=False, optional=True),
        },
        options=_CORNERS | {"background": "none"},
    ),
    "torchvision": Head(
        decode=decoders.lists,
        roles={
            "boxes": Role(2, _lasts(4), along=0),
            "scores": Role(1, _any, along=0),
            "classes": Role(1, _any, floats=False, along=0),
        },
        options=_CORNERS | {"background": "first"},
        of_all=True,
    ),
}
"""yolov5: (N, boxes, 5 + classes). yolov8: (N, 4 + classes, boxes), also YOLO11. fcos: (N, classes + 4, H, W), see
`decoders.fcos`. ssd, detr, rt-detr: boxes (N, B, 4) and scores (N, B, classes, and one for the background).
end-to-end: (N, M, 6), as YOLOv10 and YOLO26. yolov7-end: (M, 7), with the index of the image. efficientnms: boxes
(N, M, 4), scores and classes (N, M), count (N, 1). torchvision: boxes (M, 4), classes and scores (M,) of one image."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "format": get_args(BoxFormat),
    "units": get_args(Units),
    "background": get_args(Background),
    "per_box": get_args(PerBox),
    "ending": ("logits", "softmax", "log-softmax", "sigmoid"),
}
_FOR_ALL: Mapping[str, Any] = {"score": 0.001, "show": 0.25, "max": 300}
_OVERLAP = 0.7
_LIMITS = {"max": (1.0, 10_000.0), "stride": (0.0, 4096.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How one detector's outputs are read.

    outputs: the name of each role's. show: what a box is drawn from. most: boxes of one image. overlap: of NMS; None
    where there is none to be done.
    """

    head: Head
    way: Way
    outputs: Mapping[str, str]
    show: float
    most: int
    overlap: float | None

    def count(self, outputs: Outputs) -> int:
        """Return how many images the outputs are of, as far as they tell: where they do not, they are of one."""
        return 1 if self.head.of_all else len(outputs[next(iter(self.outputs.values()))])

    def candidates(self, outputs: Outputs, at: int) -> Candidates:
        """Return what is seen in image `at` of a batch.

        Raises InputError for arrays of another shape, GateError for numbers that are not finite.
        """
        parts = {role: outputs[name] for role, name in self.outputs.items()}
        if not self.head.of_all:
            parts = {role: array[at] for role, array in parts.items()}
        elif "output" in parts and parts["output"].ndim == 2:
            parts = {"output": parts["output"][parts["output"][:, 0] == at]}
        if "count" in parts:  # what is behind is not written by every runtime
            valid = int(parts.pop("count").reshape(-1)[0])
            parts = {role: array[:valid] for role, array in parts.items()}
        for array in parts.values():
            if array.dtype.kind == "f":
                require_finite(array[np.newaxis], self.way.model)
        return self.head.decode(parts, self.way)


def make_reader(given: Given) -> Reader:
    """Return how a detector is read. Raises InputError for what `reading` says wrongly, or where it says too little."""
    name = _head_of(given)
    head = HEADS[name]
    names = [spec.name for spec in given.outputs]
    usual = {**_FOR_ALL, **head.options} | ({"iou": _OVERLAP} if head.suppresses else {})
    check_reading(
        given, {"head": (name,), **dict.fromkeys(head.roles, names), **{key: _CHOICES.get(key, ()) for key in usual}}
    )
    said: dict[str, Any] = {
        key: given.reading.get(key, value) if key in _CHOICES else _number(given, key, value)
        for key, value in usual.items()
    }
    outputs = _outputs_of(given, name)
    if "ending" in said:
        said["ending"] = said["ending"] or given.endings[names.index(outputs["scores"])]
    way = Way(
        model=given.model,
        head=name,
        classes=len(given.classes),
        frame=NO_FRAME if given.frame is None else (float(given.frame[1]), float(given.frame[0])),
        score=said["score"],
        form=said.get("format", "xyxy"),
        **{key: said[key] for key in ("units", "background", "per_box", "stride", "ending") if key in said},
    )
    return Reader(
        head=head,
        way=way,
        outputs=outputs,
        show=said["show"],
        most=int(said["max"]),
        overlap=said.get("iou"),
    )


def _number(given: Given, key: str, usual: float) -> float:
    """Return the number that `reading` gives for a key, within what makes sense for it."""
    low, high = _LIMITS.get(key, (0.0, 1.0))
    numbers = numbers_read(given, key, (usual,))
    if len(numbers) != 1 or not low <= numbers[0] <= high or (key == "max" and numbers[0] % 1):
        what = "a whole number" if key == "max" else "a number"
        raise InputError(f"{given.model}: `--read {key}={given.reading[key]}` is not {what} from {low:g} to {high:g}.")
    return numbers[0]


def _head_of(given: Given) -> str:
    """Return the head that is said, or the only one that gives such outputs."""
    said = given.reading.get("head")
    if said is not None:
        if said not in HEADS:
            raise InputError(f"--read head={said}: there is no such head{did_you_mean(str(said), list(HEADS))}")
        return str(said)
    fitting = [name for name, head in HEADS.items() if _is_of(given, head)]
    if len(fitting) == 1:
        return fitting[0]
    several = " or ".join(fitting)
    made = ", ".join(f"{spec.name} {_sizes(spec)}" for spec in given.outputs)
    raise InputError(
        f"{given.model} gives {made}; {f'that can be {several}' if fitting else 'no head is known by that'}.\n"
        f"Say which head it has: msn-deploy export ... --read head={'|'.join(fitting or HEADS)}"
    )


def _is_of(given: Given, head: Head) -> bool:
    """Whether the outputs are those of a head in one way, and no other output is left."""
    found = _assignments(given, head, strict=True)
    return len(found) == 1 and len(found[0]) == len(given.outputs)


def _outputs_of(given: Given, name: str) -> dict[str, str]:
    """Return which output has each role: as is said, else as only one order fits by its shapes, or by its ranks."""
    outputs = [spec.name for spec in given.outputs]
    roles = HEADS[name].roles
    for strict in (True, False):
        found = _assignments(given, HEADS[name], strict=strict)
        if len(found) == 1:
            return found[0]
    unclear = next(role for role in roles if role not in given.reading)
    raise InputError(
        f"{given.model} has the outputs {', '.join(outputs)}; which of them are the {' and '.join(roles)} of a {name} "
        f"head can't be told.\nSay it: msn-deploy export ... --read {unclear}=NAME"
    )


def _assignments(given: Given, head: Head, *, strict: bool) -> list[dict[str, str]]:
    """Return each way to give every role an output of its own, those with most outputs alone.

    What is said of a role holds. strict: outputs fit by their shapes, else by rank and type.
    """
    choices: list[list[str | None]] = []
    for role, each in head.roles.items():
        names: list[str | None] = [
            spec.name
            for spec in given.outputs
            if each.suits(spec) and (not strict or each.fits(spec.shape or (), len(given.classes)))
        ]
        said = given.reading.get(role)
        choices.append([str(said)] if said is not None else [*names, None] if each.optional else names)
    found = [
        {role: name for role, name in zip(head.roles, names, strict=True) if name is not None}
        for names in product(*choices)
        if len(set(names)) == len(names) and (not strict or _are_as_many(given, head, names))
    ]
    most = max(map(len, found), default=0)
    return [each for each in found if len(each) == most]


def _are_as_many(given: Given, head: Head, names: Sequence[str | None]) -> bool:
    """Whether outputs, one for each role, can be of the same boxes."""
    shapes = {spec.name: spec.shape or () for spec in given.outputs}
    counts = {
        shapes[name][role.along]
        for role, name in zip(head.roles.values(), names, strict=True)
        if name is not None and role.along is not None and len(shapes[name]) == role.rank
    }
    return len(counts - {None}) < 2


def _sizes(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "of any shape"
    return "x".join("any" if size is None else str(size) for size in spec.shape) or "()"
