"""`msn-deploy recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json

EXAMPLES = """
msn-deploy recipes
msn-deploy recipes vgg7_msn > my.toml
"""


def command(
    name: Annotated[str | None, typer.Argument(help="Print this one, to start a file of your own with.")] = None,
    json: Json = None,
) -> None:
    """List the built-in recipes of `train`, or print one as TOML: `msn-deploy recipes vgg7_msn > my.toml`."""
    from msn_deploy.core.home import builtin_folder, read_toml
    from msn_deploy.core.recipes import load_recipe  # pydantic, which --help does not wait for

    if name is not None:
        path, value = read_toml(name, "models")
        if not output.emit(value, json):
            output.say(path.read_text(encoding="utf-8").rstrip("\n"))
        return
    recipes = [load_recipe(path.stem) for path in sorted(builtin_folder("models").glob("*.toml"))]
    if output.emit([recipe.to_dict() for recipe in recipes], json, then=("train", recipes[0].name)):
        return
    rows = [
        (
            recipe.name,
            "generation" if recipe.gan is not None else recipe.task,
            recipe.data,
            "x".join(map(str, recipe.input_shape[1:])),
            str(recipe.train.epochs),
        )
        for recipe in recipes
    ]
    output.show_table(rows, head=("recipe", "task", "data", "image", "epochs"), right=(4,))
