"""How large features are where a DenseNet-BC reads them, with depth: of the networks that `make paper` left.

    python benchmarks/deviation.py [TABLE ...] [--work FOLDER] [--data NAME=FOLDER] [--out FILE]

For seed 0 of BN and MSN of each table, otherwise of gap-digits-densenet-bc-22: the deviation of each feature over up to
512 test images, before the norm of a reader and before its ReLU.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import paper

from msn_deploy.core.artifacts import write_json
from msn_deploy.data import load_split, to_input

OUT = paper.HERE / "results" / "gap-deviations.json"
IMAGES = 512
ARMS = ("BN", "MSN")


def deviations(checkpoint: Path, recipe: Any) -> list[dict[str, Any]]:
    """Return, reader by reader, the least, median and largest deviation of a channel before and behind its norm."""
    import gap_nets
    import torch

    from msn_deploy.training import load_checkpoint

    gap_nets.register()
    model, info = load_checkpoint(checkpoint)
    readers = [("last", model.last)]
    for block, layers in reversed(list(enumerate(model.blocks, start=1))):
        readers = [(f"block {block}, layer {at}", layer.before) for at, layer in enumerate(layers, start=1)] + readers
        if block > 1:
            readers.insert(0, (f"transition {block - 1}", model.transitions[block - 2].before))
    rows: list[dict[str, Any]] = []

    def spread(x: torch.Tensor) -> list[float]:
        each = x.float().std((0, 2, 3))
        return [round(float(value), 3) for value in (each.min(), each.median(), each.max())]

    for name, reader in readers:
        if not len(getattr(reader, "_modules", {})):
            continue  # the producer form, and readers without a norm, have nothing here
        norm = reader[0]

        def read(_module: Any, x: Any, name: str = name) -> None:  # before the norm is called: a shift works in place
            rows.append({"reader": name, "read": spread(x[0])})

        norm.register_forward_pre_hook(read)
        norm.register_forward_hook(lambda _m, _x, y: rows[-1].update({"before the ReLU": spread(y)}))
    testing = load_split(recipe.data, "test", **recipe.image_size).first(IMAGES)
    with torch.no_grad():
        model(torch.from_numpy(to_input(testing.images, info.preprocess)))
    return rows


def main() -> None:
    assert __doc__ is not None
    parser = paper.parser_of(__doc__, paper.TABLES, paper.HERE.parent / "runs" / "paper")
    parser.set_defaults(tables=["gap-digits-densenet-bc-22"])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    data, _ = paper.settings_of(options)
    found: dict[str, Any] = {}
    for table in options.tables:
        arms: dict[str, Any] = {}
        for run in paper.runs_of(paper.TABLES / f"{table}.toml"):
            if run.recipe.train.seed == 0 and run.arm in ARMS:
                recipe = replace(run.recipe, data=data.get(run.recipe.data, run.recipe.data))
                arms[run.arm] = deviations(run.folder(options.work) / f"{run.recipe.name}.safetensors", recipe)
        found[table] = arms
    write_json(options.out, {"schema": 1, "images": IMAGES, "tables": found})
    print(json.dumps({table: list(arms) for table, arms in found.items()}))


if __name__ == "__main__":
    sys.path.insert(0, str(paper.HERE))
    main()
