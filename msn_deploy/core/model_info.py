"""What a model file says of itself: its inputs and outputs, how to prepare them, what they mean, what it is.

The same JSON text travels in a checkpoint's safetensors header and in an ONNX file's `metadata_props`, under one key.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from msn_deploy.core.errors import InputError, shown
from msn_deploy.core.reader import parse_json, record

METADATA_KEY = "msn_deploy"
SCHEMA = 3  # 1: images stretched or padded, in RGB, channels first. Up to 2: a network with classes is a classifier

NormName = Literal["msn", "msn-affine", "sn", "bn", "gn", "ws", "gn-ws", "none"]
Fit = Literal["resize", "pad", "letterbox", "crop"]
Align = Literal["centre", "corner"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Colour = Literal["rgb", "bgr", "grey"]
Layout = Literal["NCHW", "NHWC"]
Precision = Literal["fp32", "fp16", "int8", "fp8"]
Quantised = Literal["int8", "fp8"]
Runtime = Literal["tensorrt", "onnxruntime"]
TaskName = Literal[
    "classification",
    "multi-label",
    "segmentation",
    "detection",
    "regression",
    "depth",
    "embedding",
    "image-to-image",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
NORMS: tuple[NormName, ...] = get_args(NormName)
FITS: tuple[Fit, ...] = get_args(Fit)
INPUT_TYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
QUANTISED: tuple[Quantised, ...] = get_args(Quantised)

AUTO = "auto"
"""The method of `quant.scales` whose INT8 keeps the most of the outputs, see `quant.calibrate`."""
DEFAULT_METHOD = AUTO  # what it is worth: benchmarks/results/int8-steps.json
FP8_METHOD = "minmax"  # a range that clips makes no step of FP8 finer, but near zero: benchmarks/results/fp8.json
DEFAULT_PERCENTILE = 99.99
DEFAULT_SAMPLES = 256
DEFAULT_WORKSPACE_MIB = 256  # of TensorRT's builder
_MOST_SIDE_PX, _MOST_PIXELS = 16_384, 2**24  # of an image that a network takes


def require_size(height_px: int, width_px: int, most_pixels: int = _MOST_PIXELS) -> None:
    """Raise InputError for images larger than any network here takes, before something is allocated for them."""
    if max(height_px, width_px) > _MOST_SIDE_PX or height_px * width_px > most_pixels:
        raise InputError(
            f"images of {height_px}x{width_px} pixels are too large: a side has at most {_MOST_SIDE_PX}, "
            f"an image {most_pixels} pixels."
        )


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output.

    dtype: of one element, by numpy's name ("float32", "uint8"), or ONNX's where numpy has none. shape: None for an
    open size; None in place of the tuple where not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class InputOption:
    """What a user says of one input: each size as a number, or as None where it stays open, with the name that it gets.

    A number beside a name is what the open size is tried with.
    """

    name: str
    sizes: tuple[tuple[int | None, str | None], ...]
    dtype: str = ""
    """One of INPUT_TYPES; empty where nothing is said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How an image of any size gets to the one that a network wants."""

    height_px: int
    width_px: int
    channels: int
    """1 (luminance) or 3 (RGB)."""
    fit: str = "resize"
    """One of FITS. resize: scaled, whatever becomes of its proportions. pad: unscaled on a canvas. letterbox: scaled as
    far as the canvas lets it. crop: scaled, and what is too much cut off all around."""
    short_px: int = 0
    """Of a crop: what the shorter side is scaled to first; 0: the least that covers the frame."""
    fill: int = 0
    """Of a canvas: the grey that it has, 0 to 255."""
    align: str = "centre"
    """Of a canvas: where the image is, in the centre or in the upper left corner."""
    interpolation: str = "bilinear"
    """How it is scaled; where an image is made smaller, over all pixels that become one (nearest: one of them)."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"preprocessing to {self.channels} channels is not supported; 1 and 3 are.")
        for value, known, does in (
            (self.fit, FITS, "fit images by"),
            (self.align, get_args(Align), "align images at the"),
            (self.interpolation, get_args(Interpolation), "scale images by"),
        ):
            if value not in known:
                raise InputError(f"preprocessing must {does} {' or '.join(known)}, not {value!r}.")
        if min(self.height_px, self.width_px) < 1:
            raise InputError(f"preprocessing to {self.height_px}x{self.width_px} pixels is not possible.")
        require_size(self.height_px, self.width_px)
        if self.short_px and (self.fit != "crop" or self.short_px < max(self.height_px, self.width_px)):
            raise InputError(
                f"a shorter side of {self.short_px} pixels is for a crop of at most that size, "
                f"not for a {self.fit} to {self.height_px}x{self.width_px}."
            )
        canvas = self.fit in ("pad", "letterbox")
        if not 0 <= self.fill <= 255 or not (canvas or (self.fill == 0 and self.align == "centre")):
            raise InputError(
                f"fill (0 to 255) and align are of the canvas of a pad or letterbox: {self.fit}, {self.fill}, "
                f"{self.align}."
            )

    def keeps(self, height: int, width: int) -> bool:
        """Whether an image of that size stays as it is."""
        return (height, width) == (self.height_px, self.width_px) and self.short_px in (0, min(height, width))

    @property
    def image_size(self) -> dict[str, Any]:
        """Return what `load_split` and `read_image` have to know: a Frame as a dict, without most of what is usual."""
        size = {each.name: getattr(self, each.name) for each in fields(Frame)} | {"channels": self._channels_read}
        return {
            each.name: size[each.name]
            for each in fields(Frame)
            if each.name == "fit" or size[each.name] != each.default
        }

    @property
    def _channels_read(self) -> int:
        return self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess(Frame):
    """From an image to the network's input: to its frame, then (x - mean) / std per channel, of x from 0 to 1.

    `channels` are those of the network. Any other range of x is written in these numbers: -1 to 1 is mean 0.5 and
    std 0.5, 0 to 255 is mean 0 and std 1 / 255.
    """

    mean: tuple[float, ...]
    """One number per channel, in the network's order."""
    std: tuple[float, ...]
    colour: str = ""
    """The order of the channels. grey: the luminance, in each of them; empty becomes "rgb", or "grey" for 1 channel."""
    layout: str = "NCHW"
    """Whether the network takes channels first (NCHW) or last (NHWC)."""

    def __post_init__(self) -> None:
        Frame.__post_init__(self)
        natural = self._natural_colour
        if not self.colour:
            object.__setattr__(self, "colour", natural)
        if self.colour not in get_args(Colour) or (self.channels == 1 and self.colour != "grey"):
            raise InputError(f"{self.channels} channels can't be {self.colour!r}; rgb, bgr and grey are known.")
        if self.layout not in get_args(Layout):
            raise InputError(f"the layout must be {' or '.join(get_args(Layout))}, not {self.layout!r}.")
        numbers = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not numbers or {len(self.mean), len(self.std)} != {self.channels} or min(self.std) <= 0:
            raise InputError(f"mean and std need {self.channels} numbers each, std above 0: {self.mean}, {self.std}.")

    @property
    def _natural_colour(self) -> str:
        return "grey" if self.channels == 1 else "rgb"

    @property
    def _channels_read(self) -> int:
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the sizes of an input without the batch, in the order of `layout`."""
        sizes = (self.height_px, self.width_px)
        return (self.channels, *sizes) if self.layout == "NCHW" else (*sizes, self.channels)

    @property
    def is_bytes(self) -> bool:
        """Whether the numbers are those of the file, 0 to 255, so that an input of bytes can take them."""
        return not any(self.mean) and set(self.std) == {1 / 255}

    @property
    def in_words(self) -> str:
        """Say it in one line."""
        size = f"{self.width_px}x{self.height_px}"
        fit = {
            "resize": f"stretched to {size}",
            "pad": f"unscaled on {size} of grey {self.fill}, {self.align}",
            "letterbox": f"letterboxed to {size} on grey {self.fill}, {self.align}",
            "crop": f"short side to {self.short_px or 'fit'}, centre of {size}",
        }[self.fit]
        return f"{fit}, {self.interpolation}; {self.colour}, {self.layout}; {self.numbers_in_words}"

    @property
    def numbers_in_words(self) -> str:
        """Say what becomes of a pixel's numbers."""
        if self.is_bytes:
            return "0 to 255 as they are"
        mean, std = (", ".join(f"{255 * value:.4g}" for value in of) for of in (self.mean, self.std))
        return f"({mean}) subtracted from 0 to 255, then divided by ({std})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as metadata has them, without what is usual; `Preprocess(**it)` reads them back."""
        usual = {each.name: each.default for each in fields(Preprocess)} | {"colour": self._natural_colour}
        value = asdict(self)
        return {name: value[name] for name in value if name == "fit" or value[name] != usual[name]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Identity and contract of a model file.

    net: name in the registry, or "custom". norm: one of NORMS, or "custom". precision: of the graph itself, one of
    PRECISIONS. folded: no normalisation is left. data: name or folder it was trained on. recipe: the recipe as a
    dict, complete enough to rebuild the network. metrics: such as test_accuracy (0 to 1). graph: structural hash of an
    ONNX graph, equal where only weights differ; empty for a checkpoint.
    runtime: of a quantised graph, one of RUNTIMES: what its Q/DQ nodes are laid out for; else "".
    task: one of TASKS, or "" where the file does not say what its outputs mean. reading: how the task reads them, such
    as {"head": "yolov8"}; what is usual is left out.
    """

    net: str
    norm: str
    precision: str = "fp32"
    folded: bool = False
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    data: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, int | float] = field(default_factory=dict)
    graph: str = ""
    runtime: str = ""
    task: str = ""
    reading: dict[str, str | int | float | bool] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.task not in ("", *TASKS):
            raise InputError(f"unknown task {self.task!r}; known are {', '.join(TASKS)}.")

    @property
    def is_generator(self) -> bool:
        """Whether the network makes images of latents, where all others take images."""
        return self.recipe.get("gan") is not None

    def to_json(self) -> str:
        """Serialise, keys sorted, so that equal infos give equal bytes."""
        value = asdict(self) | {"preprocess": self.preprocess and self.preprocess.to_dict()}
        if not self.runtime:
            del value["runtime"]
        return json.dumps(value, sort_keys=True)

    def with_precision(self, precision: str) -> ModelInfo:
        """Return the info of the same network in another precision."""
        return replace(self, precision=precision)


def info_from_json(text: str, *, source: str) -> ModelInfo:
    """Parse what `to_json` wrote. Raises InputError that names the source and what is wrong."""
    try:
        value = parse_json(text, source="it")
        if not isinstance(value, dict) or value.get("schema") not in range(1, SCHEMA + 1):
            said = shown(value.get("schema") if isinstance(value, dict) else value)
            raise InputError(f"schema {said}; this version reads 1 to {SCHEMA}")
        if value["schema"] < 3 and value.get("classes"):
            value["task"] = "classification"
        return record(ModelInfo, value | {"schema": SCHEMA}, source="ModelInfo")
    except InputError as cause:
        raise InputError(f"{source} holds damaged metadata ({str(cause).rstrip('.')}).") from cause
