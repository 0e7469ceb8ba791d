"""Suites: TOML files that say which networks are measured side by side, in which forms; files of benchmarks/suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import PRECISIONS
from msn_deploy.core.recipes import Recipe, checked, did_you_mean, load_recipe, read_toml, recipe_from_dict

PROVIDERS = ("cpu", "cuda", "tensorrt", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One form of a network: a recipe under `models/`, exported with its norms folded or left as they are."""

    name: str
    recipe: str
    fold: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network whose rows are measured in one run, the first of them as the baseline.

    name: of its files. title: for readers. recipe: keys that replace those of every row's recipe, as in the recipe's
    own file. reference: the row that the others are also held against, each in its own precision. opset: of all rows.
    seconds: in place of the suite's.
    """

    name: str
    rows: Sequence[Row]
    title: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    opset: int = 17
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise InputError(
                f"the name of a network becomes that of a file: letters, digits, - and _; not {self.name!r}."
            )
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise InputError(f"network {self.name} needs rows, each with a name of its own; it has {names}.")
        if self.reference and self.reference not in names:
            raise InputError(f"network {self.name}: reference {self.reference!r}{did_you_mean(self.reference, names)}")

    def recipe_of(self, row: Row) -> Recipe:
        """Return what a row is trained by. Raises InputError."""
        base = load_recipe(row.recipe).to_dict()
        train = {**base["train"], **self.recipe.get("train", {})}
        recipe = recipe_from_dict({**base, **self.recipe, "train": train}, source=f"network {self.name}, {row.name}")
        if recipe.gan is not None:
            raise InputError(f"{row.recipe} is a GAN; a suite compares classifiers by their accuracy too.")
        return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is measured: every network at every batch, all its rows in all precisions interleaved in one run.

    provider: one of PROVIDERS; "engine" builds TensorRT engines, `replicates` of each. threads: of the CPU, None is
    all cores. seconds, block_ms, warmup_seconds, warmup_queries, max_queries: see bench.measure.MeasureOptions.
    """

    name: str
    networks: Sequence[Network]
    title: str = ""
    provider: str = "cpu"
    threads: int | None = None
    batches: tuple[int, ...] = (1,)
    precisions: Sequence[str] = ("fp32",)
    replicates: int = 1
    seconds: float = 5.0
    block_ms: float = 10.0
    warmup_seconds: float = 1.0
    warmup_queries: int = 5
    max_queries: int = 6000

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise InputError(f"there is no provider {self.provider!r}{did_you_mean(self.provider, PROVIDERS)}")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise InputError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
        names = [network.name for network in self.networks]
        for what, values in (("networks", names), ("batches", self.batches), ("precisions", self.precisions)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{what} must be one or more, none of them twice; got {list(values)}.")
        if min(self.batches) < 1 or self.replicates < 1:
            raise InputError(f"batches and replicates start at 1, got {list(self.batches)} and {self.replicates}.")
        if self.replicates > 1 and self.provider != "engine":
            raise InputError(f"replicates are of engines; provider {self.provider} builds none.\nLeave them out.")

    def override(self, *, seconds: float | None = None, threads: int | None = None) -> Suite:
        """Return the suite with what is not None replaced; `seconds` also where a network has its own."""
        networks = self.networks if seconds is None else [replace(each, seconds=None) for each in self.networks]
        return replace(self, networks=networks, seconds=seconds or self.seconds, threads=threads or self.threads)


def load_suite(name_or_path: str) -> Suite:
    """Read a suite by path (`my.toml`) or built-in name (`paper`). Raises InputError that names what is wrong."""
    path, value = read_toml(name_or_path, "suites")
    networks = []
    for each in _tables(value.pop("network", []), source=f"{path}: network"):
        rows = [
            checked(Row, row, source=f"{path} [[network.row]]")
            for row in _tables(each.pop("row", []), source=f"{path}: network.row")
        ]
        if not isinstance(each.get("recipe", {}), Mapping):
            raise InputError(f"{path}: network.recipe must be a section, got {each['recipe']!r}.")
        networks.append(checked(Network, {**each, "rows": rows}, source=f"{path} [[network]]"))
    if isinstance(value.get("batches"), list):
        value["batches"] = tuple(value["batches"])
    if not isinstance(value.get("precisions", []), list):
        raise InputError(f"{path}: precisions must be a list, got {value['precisions']!r}.")
    return checked(Suite, {"name": path.stem, **value, "networks": networks}, source=str(path))


def _tables(value: Any, *, source: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InputError(f"{source} must be written as tables, [[...]]; got {value!r}.")
    return [dict(each) for each in value]
