"""`msn-deploy recipes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json

EXAMPLES = """
msn-deploy recipes
msn-deploy recipes vgg7_msn > my.toml
"""
_LEGEND = (
    "parameters: trainable ones, for ten classes. test: accuracy, mIoU or mAP50 on the test images of that data, the "
    "mean of several seeds; empty: not measured. models/NAME.md has more."
)


def command(
    name: Annotated[str | None, typer.Argument(help="Print this one, to start a file of your own with.")] = None,
    json: Json = None,
) -> None:
    """List the built-in recipes of `train`, or print one as TOML: `msn-deploy recipes vgg7_msn > my.toml`."""
    from msn_deploy.core.home import builtin_folder, read_toml
    from msn_deploy.core.reader import parse_json
    from msn_deploy.core.recipes import load_recipe  # pydantic, which --help does not wait for

    if name is not None:
        path, value = read_toml(name, "models")
        if not output.emit(value, json):
            output.say(path.read_text(encoding="utf-8").rstrip("\n"))
        return
    folder = builtin_folder("models")
    recipes = [load_recipe(path.stem) for path in sorted(folder.glob("*.toml"))]
    facts = parse_json((folder / "facts.json").read_bytes(), source="facts.json")
    told = [{**recipe.to_dict(), **facts[recipe.name]} for recipe in recipes]
    if output.emit(told, json, then=("train", recipes[0].name)):
        return
    rows = [
        (
            recipe.name,
            "generation" if recipe.gan is not None else recipe.task,
            recipe.data,
            "x".join(map(str, recipe.input_shape[1:])),
            str(recipe.train.epochs),
            f"{facts[recipe.name]['parameters']:,}",
            _measured(facts[recipe.name]),
        )
        for recipe in recipes
    ]
    head = ("recipe", "task", "data", "image", "epochs", "parameters", "test")
    output.show_table(rows, head=head, right=(4, 5, 6), gap=2, spare=(4, 3))
    output.say("")
    output.say_wrapped(_LEGEND)


def _measured(facts: Mapping[str, Any]) -> str:
    return next((f"{value:.1%}" for name, value in facts.items() if name.startswith("test_")), "")
