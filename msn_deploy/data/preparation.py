"""How does a user say how images are prepared? By a preset, a TOML file, and single options, resolved for one input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic import StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.home import read_toml
from msn_deploy.core.model_info import Align, Colour, Interpolation, Preprocess, TensorSpec
from msn_deploy.core.recipes import STRICT, validated
from msn_deploy.data.preprocess import layout_of

PRESETS: dict[str, dict[str, Any]] = {
    # Of torchvision's classifiers and of most of timm's (IMAGENET_DEFAULT_MEAN and _STD, crop_pct 0.875: 256 for 224).
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "fit": "crop", "short_side": 0},
    "zero-one": {"range": "0..1"},
    "minus-one-one": {"range": "-1..1"},  # timm's IMAGENET_INCEPTION_MEAN and _STD, and what tanh gives
    # ultralytics' LetterBox, whose grey is 114.
    "yolo": {"range": "0..1", "fit": "letterbox", "fill": 114, "align": "centre"},
}
_CROP_SHARE = 0.875
_FRAME = {"fit": "fit", "short_side": "short_px", "fill": "fill", "align": "align"}  # which belong together
_TYPES = ("float32", "float16", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Preparation:
    """What is stated of how images are prepared; None where nothing is. A TOML file has the same keys."""

    preprocess: StrictStr | None = None
    """One of PRESETS, which the others override."""
    mean: tuple[float, ...] | None = None
    """One number, or one per channel in the network's order, on the scale of `range`."""
    std: tuple[float, ...] | None = None
    range: StrictStr | None = None
    """What black and white become before mean and std, such as "0..1", "0..255", "-1..1"."""
    colour: Colour | None = None
    fit: Literal["stretch", "pad", "letterbox", "crop"] | None = None
    short_side: StrictInt | None = None
    """Of a crop: pixels that the shorter side is scaled to first."""
    fill: StrictInt | None = None
    """Of a pad or letterbox: the grey around the image, 0 to 255."""
    align: Align | None = None
    """Of a pad or letterbox; the corner is the upper left one."""
    interpolation: Interpolation | None = None

    def stated(self) -> dict[str, Any]:
        """Return what is stated, by its key."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


def preparation(preset_or_file: str | None, options: Mapping[str, Any]) -> Preparation | None:
    """Return what a preset or a TOML file and the options that are not None state together; None for nothing at all.

    Raises InputError.
    """
    told = {name: value for name, value in options.items() if value is not None}
    source = "the options"
    if preset_or_file is not None and preset_or_file.endswith(".toml"):
        path, of_file = read_toml(preset_or_file, "models")
        source, told = str(path), {**of_file, **told}
    elif preset_or_file is not None:
        told["preprocess"] = preset_or_file
    made = validated(Preparation, told, source=source) if told else None
    if made is not None and made.preprocess is not None and made.preprocess not in PRESETS:
        raise InputError(
            f"unknown preprocess {made.preprocess!r}{did_you_mean(made.preprocess, list(PRESETS))}\n"
            "A path to a TOML file works too: `--preprocess FILE.toml`."
        )
    return made


def resolved(told: Preparation, given: TensorSpec, was: Preprocess | None, *, model: str) -> Preprocess:
    """Return how images are prepared for an input: as stated, the rest as the preset says, or as it `was` before.

    Raises InputError for an input that takes no images of a fixed size, and for what contradicts itself.
    """
    shape, layout = given.shape or (), layout_of(given.shape or ())
    if layout is None or None in shape[1:] or given.dtype not in _TYPES:
        sizes = "x".join("any" if size is None else str(size) for size in shape) or "no dimensions"
        raise InputError(
            f"{model} takes {given.dtype} of {sizes}; images need N x (1 or 3) x height x width, or channels last, of "
            "fixed sizes.\nLeave out what says how images are prepared, or fix the sizes: `--input-shape`."
        )
    sizes_px = [int(size or 0) for size in shape[1:]]
    height, width, channels = (*sizes_px[1:], sizes_px[0]) if layout == "NCHW" else sizes_px
    options = told.stated()
    preset = PRESETS.get(options.pop("preprocess", ""), {})
    before = was.to_dict() if was is not None else {}
    colour = options.get("colour", before.get("colour", ""))
    mean, std = _numbers(options, preset, was, channels=channels, colour=colour, takes_bytes=given.dtype == "uint8")
    frame = {"fit": "resize"} | {name: before[name] for name in _FRAME.values() if name in before}
    stated = {key: value for key, value in {**preset, **options}.items() if key in _FRAME}
    fit = {"stretch": "resize"}.get(stated.get("fit", ""), stated.get("fit"))
    if fit is not None and fit != frame["fit"]:
        frame = {}
    if "fit" in options and fit != preset.get("fit"):  # what belongs to the preset's way is not of this one
        stated = {key: value for key, value in options.items() if key in _FRAME}
    frame |= {_FRAME[key]: value for key, value in stated.items()} | ({"fit": fit} if fit else {})
    if frame["fit"] == "crop" and stated.get("short_side") == 0:
        frame["short_px"] = int(max(height, width) / _CROP_SHARE)
    return Preprocess(
        height_px=height,
        width_px=width,
        channels=channels,
        mean=mean,
        std=std,
        colour=colour,
        layout=layout,
        interpolation=options.get("interpolation", before.get("interpolation", "bilinear")),
        **frame,
    )


def _numbers(
    options: Mapping[str, Any],
    preset: Mapping[str, Any],
    was: Preprocess | None,
    *,
    channels: int,
    colour: str,
    takes_bytes: bool,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std on the scale of 0 to 1."""
    as_bytes = (0.0,) * channels, (1 / 255,) * channels
    mine = {key for key in ("mean", "std", "range") if key in options}
    if not mine and not preset:
        if takes_bytes:
            return as_bytes
        if was is None:
            raise InputError(
                "it is not stated which numbers pixels become.\n"
                f"Say `--range 0..1`, and `--mean` and `--std` if there are any, or `--preprocess {'|'.join(PRESETS)}`."
            )
        if colour and colour != was.colour and len({*zip(was.mean, was.std, strict=True)}) > 1:
            raise InputError(f"mean and std are in the order {was.colour}.\nWith `--colour {colour}` give both.")
        return was.mean, was.std
    if "mean" in preset and "range" in mine and not {"mean", "std"} <= mine:
        raise InputError("the preset's mean and std are of the range 0..1.\nWith `--range` give `--mean` and `--std`.")
    if "mean" in preset and colour == "bgr" and not {"mean", "std"} <= mine:
        raise InputError(
            "the preset's mean and std are in the order red, green, blue.\n"
            "With `--colour bgr` give `--mean` and `--std` in the order of the network."
        )
    told = {"range": "0..1", "mean": (0.0,), "std": (1.0,), **preset, **options}
    low, high = _range(told["range"])
    found = []
    for key in ("mean", "std"):
        values = told[key] * channels if len(told[key]) == 1 else told[key]
        if len(values) != channels:
            raise InputError(f"{key} has {len(values)} numbers and the network {channels} channels: {told[key]}.")
        found.append(values)
    if not all(low <= value <= high for value in found[0]) and "mean" in told and any(found[0]):
        raise InputError(
            f"mean {found[0]} is outside of the range {told['range']}.\n"
            "Say which range it is of, such as `--range 0..255`."
        )
    mean = tuple((value - low) / (high - low) for value in found[0])
    std = tuple(value / (high - low) for value in found[1])
    if takes_bytes and (mean, std) != as_bytes:
        raise InputError(
            "the network takes bytes: 0 to 255, and no other numbers.\n"
            "Leave out `--mean`, `--std`, `--range` and presets."
        )
    return mean, std


def _range(text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)
    if not dots or not ends[0] < ends[1] or not abs(ends[1] - ends[0]) < 1e9:
        raise InputError(f"range {text!r} is not LOW..HIGH, such as 0..1, 0..255 or -1..1.")
    return ends
