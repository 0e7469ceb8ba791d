"""Write the card of every built-in recipe, models/NAME.md; `--measure` counts parameters and saved memory anew.

    python benchmarks/cards.py [--measure]

Numbers come from models/facts.json (counted; `recipes` shows them, too) and benchmarks/results/paper/ (trained, `make
paper`), from which the metric on the default data goes into that file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accuracy import METRICS, RESULTS, Row, read, rows_of, said

from msn_deploy.core.recipes import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
COUNTED = MODELS / "facts.json"
COUNTS = ("parameters", "saved_mib")
BATCH = 16


def names() -> list[str]:
    return sorted(path.stem for path in MODELS.glob("*.toml"))


def counted(recipe: Recipe) -> dict[str, Any]:
    """Count parameters, and what one training step keeps for the backward, on the CPU in float32."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    import torch
    from train_step_arms import saved_bytes

    from msn_deploy.nets import build_net

    torch.manual_seed(0)
    model = build_net(recipe, classes=10 + (recipe.task == "segmentation")).train()  # and the background
    batch = torch.randn(BATCH, *recipe.network_input)
    saved = saved_bytes(lambda: model(batch).sum(), [*model.parameters(), batch])
    return {"parameters": sum(each.numel() for each in model.parameters()), "saved_mib": round(saved / 2**20, 2)}


def card(name: str, facts: dict[str, dict[str, Any]]) -> str:
    """Return the text of a recipe's card."""
    recipe = load_recipe(name)
    first = (MODELS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    twin = f"{name.removesuffix('_' + recipe.norm.replace('-', '_'))}_bn"
    own = facts[name]
    lines = [f"# {name}", "", f"{first[0].upper()}{first[1:]}.", "", "| | |", "|---|---|"]
    lines.append(f"| input | {'x'.join(map(str, recipe.network_input))} |")
    beside = f" (BN twin: {facts[twin]['parameters']:,})" if twin in facts and twin != name else ""
    what = "generator's parameters" if recipe.gan else "trainable parameters"
    lines.append(f"| {what} | {own['parameters']:,}{beside} |")
    beside = f" (BN twin: {facts[twin]['saved_mib']})" if twin in facts and twin != name else ""
    lines.append(f"| kept for the backward, batch {BATCH} | {own['saved_mib']} MiB{beside} |")
    if recipe.gan is None:
        lines += ["", *_accuracies(recipe)]
    default = f"msn-deploy train {name}"
    lines += ["", f"Train it on its default data, {recipe.data}: `{default}`.", ""]
    return "\n".join(lines)


def _accuracies(recipe: Recipe) -> list[str]:
    rows = []
    for table, title, row in _trained(recipe):
        accuracy, difference = said(row)
        rows.append(f"| {title} | {accuracy} | {difference} | `make paper TABLES={table}` |")
    if not rows:
        return ["Not trained in a table of `benchmarks/results/paper/` yet: no accuracy is claimed."]
    metric = METRICS[recipe.task].replace("_", " ")
    head = f"| {metric}, % | mean ± deviation (seeds) | against BN, points (95 %) | reproduce |"
    return [head, "|---|---|---|---|", *rows]


def _trained(recipe: Recipe) -> Iterator[tuple[str, str, Row]]:
    """Yield the tables that trained the recipe, on other data or for other epochs too: name, title and its row."""
    same = ("net", "norm", "width", "init", "classifier", "input_shape")
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem.endswith("-rates"):  # the same recipe with other rates: not what the card promises
            continue
        result = read(path.stem)
        assert result is not None
        for row in rows_of(result):
            if all(row.recipe[key] == recipe.to_dict()[key] for key in same) and _plain(row.recipe, recipe):
                yield path.stem, result["title"], row


def measured(recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe as it is came to in a table; nothing if none has it."""
    own = recipe.to_dict()
    for _, _, row in () if recipe.gan else _trained(recipe):
        if (row.recipe["data"], row.recipe["train"]["epochs"]) == (own["data"], own["train"]["epochs"]):
            return {METRICS[recipe.task]: round(row.accuracy / 100, 4), "seeds": row.seeds}
    return {}


def _plain(trained: dict[str, Any], recipe: Recipe) -> bool:
    """Tell whether an arm is the recipe itself, on other data or for other epochs, and no experiment with it."""
    options = recipe.to_dict()["train"]
    keys = ("optimizer", "learning_rate", "weight_decay", "power_iterations", "schedule", "warm_up", "label_smoothing")
    return all(trained["train"][key] == options[key] for key in keys)


def main() -> None:
    known = {} if "--measure" in sys.argv[1:] else json.loads(COUNTED.read_text(encoding="utf-8"))
    facts = {}
    for name in names():
        recipe = load_recipe(name)
        count = {key: known[name][key] for key in COUNTS} if name in known else counted(recipe)
        facts[name] = {**count, **measured(recipe)}
    COUNTED.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for name in names():
        (MODELS / f"{name}.md").write_text(card(name, facts), encoding="utf-8")


if __name__ == "__main__":
    main()
