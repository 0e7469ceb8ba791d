"""What a model file says of itself: its inputs and outputs, how to prepare them, what they mean, what it is.

The same JSON text travels in a checkpoint's safetensors header and in an ONNX file's `metadata_props`, under one key.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from msn_deploy.core.errors import InputError

METADATA_KEY = "msn_deploy"
SCHEMA = 1

NormName = Literal["msn", "msn-affine", "sn", "bn", "gn", "ws", "gn-ws", "none"]
Fit = Literal["resize", "pad"]
Precision = Literal["fp32", "fp16", "int8"]
NORMS: tuple[NormName, ...] = get_args(NormName)
FITS: tuple[Fit, ...] = get_args(Fit)
INPUT_TYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Of all methods of calibration the one that is never the worst: benchmarks/results/int8.json.
DEFAULT_METHOD = "mse"
DEFAULT_PERCENTILE = 99.99
DEFAULT_SAMPLES = 256
DEFAULT_WORKSPACE_MIB = 256  # of TensorRT's builder


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output.

    dtype: of one element, by numpy's name ("float32", "uint8"), or ONNX's where numpy has none. shape: None for an
    open size; None in place of the tuple where not even the rank is told.
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
class Preprocess:
    """From an image to the network's input: to its size, to `channels`, to 0..1, then (x - mean) / std per channel.

    height_px, width_px: input size. channels: 1 (luminance) or 3 (RGB). mean, std: per channel, on the 0..1 scale.
    fit: one of FITS; an image is scaled to the size, or centred unscaled on a black canvas of it.
    """

    height_px: int
    width_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "resize"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"preprocessing to {self.channels} channels is not supported; 1 and 3 are.")
        if self.fit not in FITS:
            raise InputError(f"preprocessing must {' or '.join(FITS)} images, not {self.fit!r}.")
        if min(self.height_px, self.width_px) < 1:
            raise InputError(f"preprocessing to {self.height_px}x{self.width_px} pixels is not possible.")
        numbers = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not numbers or {len(self.mean), len(self.std)} != {self.channels} or min(self.std) <= 0:
            raise InputError(f"mean and std need {self.channels} numbers each, std above 0: {self.mean}, {self.std}.")

    @property
    def image_size(self) -> dict[str, Any]:
        """Return what `load_split` and `read_image` have to know: height_px, width_px, channels and fit."""
        return {"height_px": self.height_px, "width_px": self.width_px, "channels": self.channels, "fit": self.fit}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Identity and contract of a model file.

    net: name in the registry, or "custom". norm: one of NORMS, or "custom". precision: of the graph itself, one of
    PRECISIONS. folded: no normalisation is left. data: name or folder it was trained on. recipe: the recipe as a
    dict, complete enough to rebuild the network. metrics: such as test_accuracy (0 to 1). graph: structural hash of an
    ONNX graph, equal where only weights differ; empty for a checkpoint.
    """

    net: str
    norm: str
    precision: str = "fp32"
    folded: bool = False
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    data: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    graph: str = ""
    schema: int = SCHEMA

    @property
    def is_generator(self) -> bool:
        """Whether the network makes images of latents, where all others take images."""
        return self.recipe.get("gan") is not None

    def to_json(self) -> str:
        """Serialise, keys sorted, so that equal infos give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True)

    def with_precision(self, precision: str) -> ModelInfo:
        """Return the info of the same network in another precision."""
        return replace(self, precision=precision)


def info_from_json(text: str, *, source: str) -> ModelInfo:
    """Parse what `to_json` wrote. Raises InputError that names the source and what is wrong."""
    try:
        value = json.loads(text)
        if value["schema"] != SCHEMA:
            raise InputError(f"schema {value['schema']!r}; this version reads {SCHEMA}")
        prep = value.pop("preprocess")
        if prep is not None:
            prep = Preprocess(**{**prep, "mean": tuple(prep["mean"]), "std": tuple(prep["std"])})
        return ModelInfo(
            **{**value, "classes": tuple(value["classes"]), "preprocess": prep, "recipe": dict(value["recipe"])}
        )
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(f"{source} holds damaged metadata ({type(cause).__name__}: {cause}).") from cause
