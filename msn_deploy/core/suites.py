"""Suites: TOML files that say which networks are measured side by side, in which forms; files of benchmarks/suites."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.home import read_toml
from msn_deploy.core.model_info import Precision
from msn_deploy.core.recipes import STRICT, Count, FileName, Recipe, load_recipe, recipe_from_dict, validated

_Seconds = Annotated[StrictFloat, Field(gt=0, le=86_400)]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Row:
    """One form of a network: a recipe under `models/`, exported with its norms folded or left as they are."""

    name: StrictStr
    recipe: StrictStr
    fold: StrictBool = True


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Network:
    """A network whose rows are measured in one run, the first of them as the baseline."""

    name: FileName
    """Of its files."""
    rows: Annotated[tuple[Row, ...], Field(validation_alias="row")] = ()
    title: StrictStr = ""
    """For readers."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Keys that replace those of every row's recipe, as in the recipe's own file."""
    reference: StrictStr = ""
    """The row that the others are also compared with, each in its own precision."""
    opset: Count = 17
    """Of all rows."""
    seconds: _Seconds | None = None
    """In place of the suite's."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise InputError(f"network {self.name} needs rows, each with a name of its own; it has {names}.")
        if self.reference and self.reference not in names:
            raise InputError(f"network {self.name}: reference {self.reference!r}{did_you_mean(self.reference, names)}")

    def recipe_of(self, row: Row) -> Recipe:
        """Return what a row is trained by. Raises InputError."""
        base = load_recipe(row.recipe).to_dict()
        value = {**base, **self.recipe}
        if isinstance(value["train"], dict):
            value["train"] = {**base["train"], **value["train"]}
        recipe = recipe_from_dict(value, source=f"network {self.name}, {row.name}")
        if recipe.gan is not None:
            raise InputError(f"{row.recipe} is a GAN; a suite compares classifiers by their accuracy too.")
        return recipe


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Suite:
    """What is measured: every network at every batch, all its rows in all precisions interleaved in one run.

    seconds, block_ms, warmup_seconds, warmup_queries, max_queries: see bench.measure.MeasureOptions.
    """

    name: FileName
    """Of its folder."""
    networks: Annotated[tuple[Network, ...], Field(validation_alias="network")] = ()
    title: StrictStr = ""
    provider: Literal["cpu", "cuda", "tensorrt", "engine"] = "cpu"
    """engine builds TensorRT engines, `replicates` of each."""
    threads: Annotated[StrictInt, Field(ge=1, le=1024)] | None = None
    """Of the CPU; None is all cores."""
    batches: tuple[Annotated[StrictInt, Field(ge=1, le=65_536)], ...] = (1,)
    precisions: tuple[Precision, ...] = ("fp32",)
    replicates: Annotated[StrictInt, Field(ge=1, le=100)] = 1
    seconds: _Seconds = 5.0
    block_ms: Annotated[StrictFloat, Field(gt=0, le=1e6)] = 10.0
    warmup_seconds: Annotated[StrictFloat, Field(ge=0, le=86_400)] = 1.0
    warmup_queries: Annotated[StrictInt, Field(ge=0, le=10**6)] = 5
    max_queries: Count = 6000

    def __post_init__(self) -> None:
        names = tuple(network.name for network in self.networks)
        for what, values in (("networks", names), ("batches", self.batches), ("precisions", self.precisions)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{what} must be one or more, none of them twice; got {list(values)}.")
        if self.replicates > 1 and self.provider != "engine":
            raise InputError(f"replicates are of engines; provider {self.provider} builds none.\nLeave them out.")

    def override(self, *, seconds: float | None = None, threads: int | None = None) -> Suite:
        """Return the suite with what is not None replaced; `seconds` also where a network has its own."""
        networks = self.networks if seconds is None else tuple(replace(each, seconds=None) for each in self.networks)
        return replace(self, networks=networks, seconds=seconds or self.seconds, threads=threads or self.threads)


def load_suite(name_or_path: str) -> Suite:
    """Read a suite by path (`my.toml`) or built-in name (`paper`). Raises InputError that names what is wrong."""
    path, value = read_toml(name_or_path, "suites")
    return validated(Suite, {"name": path.stem, **value}, source=str(path))
