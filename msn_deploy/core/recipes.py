"""Recipes: TOML files that say how a network is trained, found by path or by the name of a file under `models/`.

A path given by the user beats a built-in name. In a wheel the built-in files lie inside the package, in a checkout
they are the top-level folders themselves.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError
from msn_deploy.core.gan_options import GanOptions, refuse_unused
from msn_deploy.core.model_info import FITS, NORMS
from msn_deploy.core.train_options import TrainOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
CLASSIFIERS = ("linear", "sn")
INITS = ("plain", "kaiming")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One network, one norm, and how to train it.

    input_shape: (N, C, H, W); N is 1, C is 1 or 3. data: default data, a known name or a folder. width: channels of
    the first block; the others are multiples of it. classifier: one of CLASSIFIERS; "sn" divides the weight of the last
    linear layer by its spectral norm, as the paper's authors do on MNIST. fit: one of FITS, how images get to the size
    of input_shape: scaled, or unscaled on a black canvas. init: one of INITS; "kaiming" gives each convolution with a
    spectral norm a constant factor with which it starts at the deviation of Kaiming's initialisation (`init_gain` of
    the layers); "plain" has none, as the paper. Convolutions without a spectral norm start the same with either.
    gan: for a generator, which is trained against a discriminator that has the norm; input_shape is that of the images.
    """

    name: str
    net: str
    norm: str
    data: str
    input_shape: tuple[int, int, int, int]
    width: int
    classifier: str = "linear"
    fit: str = "resize"
    init: str = "plain"
    gan: GanOptions | None = None
    train: TrainOptions = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"unknown norm {self.norm!r}{did_you_mean(self.norm, NORMS)}")
        shape = self.input_shape
        if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or min(shape) < 1:
            raise InputError(f"input_shape must be [1, 1 or 3, height, width], got {list(shape)}.")
        if not 1 <= self.width <= 4096:
            raise InputError(f"width must lie between 1 and 4096, got {self.width}.")
        for name, known in (("classifier", CLASSIFIERS), ("fit", FITS), ("init", INITS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.gan is not None:
            refuse_unused(self.train)
            for name, plain in (("classifier", "linear"), ("init", "plain")):
                if getattr(self, name) != plain:
                    raise InputError(f"{name} has no part in a GAN, got {getattr(self, name)!r}.\nLeave it out.")

    @property
    def image_size(self) -> dict[str, Any]:
        """Return what `load_split` has to know of the images: height_px, width_px, channels and fit."""
        _, channels, height, width = self.input_shape
        return {"height_px": height, "width_px": width, "channels": channels, "fit": self.fit}

    @property
    def network_input(self) -> tuple[int, int, int]:
        """Return the shape of what the network takes, without the batch: an image, or a generator's latents."""
        _, channels, height, width = self.input_shape
        return (channels, height, width) if self.gan is None else (self.gan.latent, 1, 1)

    def override(self, *, norm: str | None = None, data: str | None = None, **train: Any) -> Recipe:
        """Return the recipe with the options that are not None replaced, and the name following the norm."""
        chosen = {key: value for key, value in train.items() if value is not None}
        name = self.name
        if norm is not None and norm != self.norm:
            name = name.removesuffix("_" + self.norm.replace("-", "_")) + "_" + norm.replace("-", "_")
        return replace(
            self,
            name=name,
            norm=norm or self.norm,
            data=data or self.data,
            train=replace(self.train, **chosen),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in metadata; `recipe_from_dict` reads them back."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


def recipe_from_dict(value: Mapping[str, Any], *, source: str) -> Recipe:
    """Build a recipe from plain values; every unknown, missing or mistyped key is an InputError that names it."""
    flat = dict(value)
    train = flat.pop("train", None)
    if not isinstance(train, Mapping):
        raise InputError(f"{source} needs a [train] section.")
    shape = flat.get("input_shape")
    if isinstance(shape, (list, tuple)):
        flat["input_shape"] = tuple(shape)
    options = checked(TrainOptions, train, source=f"{source} [train]")
    if (gan := flat.get("gan")) is not None:
        if not isinstance(gan, Mapping):
            raise InputError(f"{source}: gan must be a section, got {gan!r}.")
        flat["gan"] = checked(GanOptions, gan, source=f"{source} [gan]")
    return checked(Recipe, {**flat, "train": options}, source=source)


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by path (`my.toml`) or built-in name (`vgg7_msn`). Raises InputError."""
    path, value = read_toml(name_or_path, "models")
    return recipe_from_dict({"name": path.stem, **value}, source=str(path))


def read_toml(name_or_path: str, folder: str) -> tuple[Path, dict[str, Any]]:
    """Read a TOML file by path, or by the name of one in a built-in folder; return also where it lies.

    Raises InputError.
    """
    path = Path(name_or_path)
    if not os.path.isfile(path):  # unlike Path.is_file it takes any text, also one too long for a file name
        place = builtin_folder(folder)
        known = sorted(file.stem for file in place.glob("*.toml"))
        if name_or_path not in known:
            what = "suite" if folder == "suites" else "recipe"
            raise InputError(
                f"unknown {what} {name_or_path!r}{did_you_mean(name_or_path, known)}\nA path to a TOML file works too."
            )
        path = place / f"{name_or_path}.toml"
    with open_input(path) as stream:
        try:
            return path, tomllib.load(stream)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise InputError(f"{path} is not valid TOML: {cause}.") from cause


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return the recipe with keys of its file set anew, each as "KEY=VALUE": "train.ema=0.99", "init=plain".

    Text needs no quotes; the order does not matter. Raises InputError that names what was set.
    """
    if not settings:
        return recipe
    changed = recipe.to_dict()
    for setting in settings:
        key, _, text = (part.strip() for part in setting.partition("="))
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        section, _, name = key.rpartition(".")
        if not name or not text or (section and not isinstance(changed.get(section), dict)):
            raise InputError(f"`--set {setting}` is not KEY=VALUE with a key of a recipe, such as train.ema=0.99.")
        (changed[section] if section else changed)[name] = value
    return recipe_from_dict(changed, source=f"`{' '.join(f'--set {each}' for each in settings)}`")


def builtin_folder(name: str) -> Path:
    """Return the folder of built-in data files: "models", "calibration" or "suites"."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_recipes" / name
    checkout = package.parent / ("benchmarks/suites" if name == "suites" else name)
    return shipped if shipped.is_dir() else checkout


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return ": did you mean X?" or the list of what is known, to finish an error message."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}."


def checked(cls: type[T], value: Mapping[str, Any], *, source: str) -> T:
    """Construct a dataclass from TOML values; types are compared by the annotation's first word."""
    known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}{did_you_mean(key, list(known))}")
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
        "tuple": (tuple,),
    }
    for key, item in value.items():
        wanted = str(known[key].type).partition("[")[0]
        if wanted in kinds and (not isinstance(item, kinds[wanted]) or isinstance(item, bool) != (wanted == "bool")):
            raise InputError(f"{source}: {key} must be {wanted}, got {item!r}.")
        if wanted == "tuple" and not all(isinstance(part, int) for part in item):
            raise InputError(f"{source}: {key} must hold whole numbers, got {list(item)}.")
    try:
        return cls(**value)
    except TypeError as cause:
        raise InputError(f"{source}: {str(cause).partition('__init__() ')[2] or cause}.") from cause
    except InputError as cause:
        raise InputError(f"{source}: {cause}") from cause
