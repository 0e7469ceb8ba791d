"""Recipes: TOML files that say how a network is trained or calibrated, as frozen records.

pydantic checks the keys, types and limits of a file; `validated` turns what it finds into an InputError that names the
file, the key and the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from msn_deploy.core.errors import InputError, shown
from msn_deploy.core.home import read_toml
from msn_deploy.core.model_info import DEFAULT_METHOD, DEFAULT_PERCENTILE, DEFAULT_SAMPLES, Fit, NormName, require_size
from msn_deploy.core.reader import new_file_name, parse_toml, refusal

T = TypeVar("T")
_MOST_PIXELS = 2**22  # of a training image
STRICT: ConfigDict = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)
"""The configuration of every record that is read from a file."""

FileName = Annotated[StrictStr, AfterValidator(new_file_name)]
"""Text that files are named after."""
Count = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
_Share = Annotated[StrictFloat, Field(ge=0, lt=1)]
Schedule = Literal["one-cycle", "cosine", "step", "constant"]
Freeze = Literal["none", "statistics", "backbone"]
TrainedTask = Literal["classification", "multi-label", "segmentation", "detection", "regression"]
"""Those of model_info.TASKS that the trainer has a loss for."""

# Options that the training of a GAN uses. Its optimizer is always Adam, nothing is held out, and it has no labels.
_IN_A_GAN = (
    *("epochs", "batch_size", "learning_rate", "schedule", "warm_up", "augment", "amp", "channels_last"),
    *("power_iterations", "seed"),
    *("name", "net", "norm", "data", "input_shape", "width", "fit", "gan", "train"),
)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainOptions:
    """How a network is trained: the `[train]` section of a recipe."""

    epochs: Count
    """Passes over the training split."""
    batch_size: Count
    """Images per optimizer step, over all processes together."""
    learning_rate: Annotated[StrictFloat, Field(gt=0, lt=100)]
    """Peak of the schedule."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """sgd has Nesterov momentum 0.9."""
    schedule: Schedule = "one-cycle"
    """What follows the warm-up. step: a tenth after half, a hundredth after 3/4 of the steps."""
    warm_up: Annotated[StrictFloat, Field(ge=0, le=0.9)] = 0.3
    """Share of the steps in which the learning rate rises, along a cosine, from 1 / 25 of its peak."""
    weight_decay: Annotated[StrictFloat, Field(ge=0, le=100)] = 0.0
    """On weights only, never on shift, gain or bias."""
    label_smoothing: _Share = 0.0
    """Share of each label that is spread over all classes, where one class is right."""
    clip_norm: Annotated[StrictFloat, Field(ge=0, le=1e6)] = 0.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema: _Share = 0.0
    """Decay per step of an average of the weights that is saved in their place; 0: none."""
    validation: Annotated[StrictFloat, Field(ge=0, le=0.5)] = 0.0
    """Share of the training split that is held out, for `patience` to look at."""
    patience: Annotated[StrictInt, Field(ge=0)] = 0
    """Stop after N epochs without a better metric on the held-out images, and keep the best; 0: never."""
    augment: Literal["none", "flip", "crop", "crop-flip"] = "none"
    """Flip left and right, crop after padding by an eighth of the side, or both. Masks and boxes move along."""
    amp: StrictBool = False
    """Run the network in bfloat16 under autocast; weights, optimizer and loss stay in float32."""
    channels_last: StrictBool = False
    """Keep activations and weights in the channels_last memory format."""
    power_iterations: Annotated[StrictInt, Field(ge=1, le=1000)] = 1
    """Per training step, for sigma."""
    freeze: Freeze = "none"
    """statistics: the running mean and variance of BN, and the mean, u and v of MSN, stay as they are and are what
    normalises in training, too. backbone: the classifier alone learns. Both are for fine-tuning."""
    distill: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.0
    """Share of the loss that is the distance to the outputs of the float network, in training under INT8."""
    seed: Seed = 0
    """Of initial weights, batch order and augmentation."""

    def __post_init__(self) -> None:
        if self.patience and not self.validation:
            raise InputError(
                f"train.patience is {self.patience} and needs train.validation above 0.\n"
                "Early stopping needs held-out images: choosing an epoch by the test images would flatter it."
            )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class GanOptions:
    """The `[gan]` section: generator and discriminator both learn at `train.learning_rate`, one step each per batch."""

    latent: Annotated[StrictInt, Field(ge=1, le=4096)] = 128
    """Numbers, normally distributed, that an image is generated from."""
    beta1: _Share = 0.5
    """Of Adam's running mean of the gradient."""


def _shape(value: object) -> object:
    match value:
        case [1, 1 | 3, int(height), int(width)] if min(height, width) >= 1:
            require_size(height, width, _MOST_PIXELS)
            return value
    raise ValueError(f"must be [1, 1 or 3, height, width] in whole numbers, got {shown(value)}.")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Recipe:
    """One network, one norm, and how to train it."""

    name: FileName
    """Of the checkpoint's file, unless the file says otherwise that of the recipe's."""
    net: StrictStr
    """A name in `nets.registry`."""
    norm: NormName
    data: StrictStr
    """Default data, a known name or a folder."""
    input_shape: Annotated[tuple[StrictInt, StrictInt, StrictInt, StrictInt], BeforeValidator(_shape)]
    """(N, C, H, W) of the images; N is 1, C is 1 or 3."""
    width: Annotated[StrictInt, Field(ge=1, le=4096)]
    """Channels of the first block; the others are multiples of it."""
    task: TrainedTask = "classification"
    """What the network learns, and which labels of the data it learns from."""
    classifier: Literal["linear", "sn"] = "linear"
    """sn divides the weight of the last linear layer by its spectral norm, as the paper's authors do on MNIST."""
    fit: Fit = "resize"
    """How images get to the size of input_shape: scaled, or unscaled on a black canvas."""
    init: Literal["plain", "kaiming", "data"] = "plain"
    """kaiming gives each convolution with a spectral norm a constant factor with which it starts at the deviation of
    Kaiming's initialisation (`init_gain` of the layers), and is where the gain of standardised weights starts; plain
    has none, as in the paper. data is kaiming, whose weights, and those of linear layers, are then divided by the size
    of what they read in the first batch. Other convolutions start the same with each."""
    gan: GanOptions | None = None
    """For a generator, which is trained against a discriminator that has the norm."""
    train: TrainOptions

    def __post_init__(self) -> None:
        if self.train.label_smoothing and self.task not in ("classification", "segmentation"):
            raise InputError(f"train.label_smoothing has no part in training for {self.task}.\nLeave it out.")
        if self.gan is None:
            return
        for section, prefix in ((self.train, "train."), (self, "")):
            for option in fields(section):
                value = getattr(section, option.name)
                if option.name not in _IN_A_GAN and value != option.default:
                    raise InputError(
                        f"{prefix}{option.name} has no part in training a GAN, got {shown(value)}.\nLeave it out."
                    )

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
        changed = self.to_dict()
        changed["train"] |= {key: value for key, value in train.items() if value is not None}
        if norm is not None and norm != self.norm:
            stem = self.name.removesuffix("_" + self.norm.replace("-", "_"))
            changed |= {"norm": norm, "name": f"{stem}_{norm.replace('-', '_')}"}
        return recipe_from_dict({**changed, "data": data or self.data}, source=f"recipe {self.name}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in metadata; `recipe_from_dict` reads them back."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CalibrationRecipe:
    """What a calibration takes: a TOML file under `calibration/`."""

    name: FileName
    data: StrictStr
    """A known name or a folder; its training images are taken."""
    samples: Count = DEFAULT_SAMPLES
    """How many images."""
    seed: Seed | None = None
    """Draws the images; None spreads them evenly."""
    preprocess: Literal["model"] = "model"
    """Images are prepared as the model file says."""
    method: StrictStr = DEFAULT_METHOD
    """Of `quant.scales`, as is `percentile`."""
    percentile: StrictFloat = DEFAULT_PERCENTILE


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by path (`my.toml`) or built-in name (`vgg7_msn`). Raises InputError.

    Examples:
        >>> import msn_deploy
        >>> recipe = msn_deploy.load_recipe("vgg7_msn")
        >>> recipe.data, recipe.train.epochs
        ('digits', 12)
    """
    path, value = read_toml(name_or_path, "models")
    return recipe_from_dict({"name": path.stem, **value}, source=str(path))


def load_calibration_recipe(name_or_path: str) -> CalibrationRecipe:
    """Read a calibration recipe by path (`my.toml`) or built-in name (`mnist`). Raises InputError."""
    path, value = read_toml(name_or_path, "calibration")
    return validated(CalibrationRecipe, {"name": path.stem, **value}, source=str(path))


def recipe_from_dict(value: Mapping[str, Any], *, source: str) -> Recipe:
    """Build a recipe from plain values; every unknown, missing or mistyped key is an InputError that names it."""
    return validated(Recipe, value, source=source)


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
            value = parse_toml(f"value = {text}", source=setting)["value"]
        except InputError:  # text without quotes
            value = text
        section, _, name = key.rpartition(".")
        if not name or not text or (section and not isinstance(changed.get(section), dict)):
            raise InputError(f"`--set {setting}` is not KEY=VALUE with a key of a recipe, such as train.ema=0.99.")
        if not section and name not in changed and name in changed["train"]:
            raise InputError(f"`--set {setting}`: {name} is a key of the training.\nType `--set train.{key}={text}`.")
        (changed[section] if section else changed)[name] = value
    return recipe_from_dict(changed, source=f"`{' '.join(f'--set {each}' for each in settings)}`")


def validated(cls: type[T], value: Mapping[str, Any], *, source: str) -> T:
    """Build a record of this module or of `suites` from plain values.

    Raises InputError for the first key that is unknown, mistyped, out of its limits or missing, in that order.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(value))
    except (ValidationError, InputError) as cause:
        raise refusal(cls, cause, source=source) from cause
