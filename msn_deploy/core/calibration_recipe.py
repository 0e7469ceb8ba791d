"""Recipes of calibrations: which images, how many, drawn how, and by which method; a TOML file under `calibration/`."""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import checked, read_toml

# Of all methods the one that is never the worst: benchmarks/results/int8.json.
DEFAULT_METHOD = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecipe:
    """What a calibration takes.

    data: a known name or a folder; its training images are taken. samples: how many. seed: draws them; None spreads
    them evenly. preprocess: "model", the preprocessing that the model file names. method, percentile: of
    `graph.scales`.
    """

    name: str
    data: str
    samples: int = 256
    seed: int | None = None
    preprocess: str = "model"
    method: str = DEFAULT_METHOD
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples must be 1 or more, got {self.samples}.")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**32):
            raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}, got {self.seed!r}.")
        if self.preprocess != "model":
            raise InputError(f'preprocess must be "model", what the model file says, got {self.preprocess!r}.')


def load_calibration_recipe(name_or_path: str) -> CalibrationRecipe:
    """Read a recipe by path (`my.toml`) or built-in name (`mnist`). Raises InputError that names what is wrong."""
    path, value = read_toml(name_or_path, "calibration")
    return checked(CalibrationRecipe, {"name": path.stem, **value}, source=str(path))
