"""docs/results/gap.md: what was tried to bring MSN's DenseNet to BatchNorm's, from the committed results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import accuracy

from msn_deploy.core.reader import tomllib

HERE = Path(__file__).resolve().parent
TABLES = ("gap-start-densenet-bc-22", "gap-densenet-bc-22", "gap-digits-densenet-bc-22")
DEVIATIONS = HERE / "results" / "gap-deviations.json"
HEAD = """# DenseNet: what BatchNorm has there and MSN lacks

Against BatchNorm, in points of accuracy (means of the README's table), MSN has {fashion-vgg7} on Fashion-MNIST and
{digits-vgg7} on digits with VGG7, but {fashion-densenet-bc-22} and {digits-densenet-bc-22} with DenseNet-BC-22.
There, with BatchNorm, each reader divides each feature by its deviation again; with MSN a feature keeps the size that
its convolution gave it, and sizes grow with depth (last table).

Below is what was tried, in small. `make paper TABLES="{tables}"`
trains what is missing and resumes what was stopped; `make readme` fills this page. Where a name does not
mention BN, the arm is MSN with Kaiming's start, changed as the name says. The variants are in
`benchmarks/gap_nets.py`. One of the 364 test images of digits is 0.27 points.

What won on 10,000 images: MSN has {msn} points over BatchNorm there, {reader} with weights of readers that start at
unit deviation, and {data} with weights that start from data, which every recipe takes (`train --set init=data`).
Seeds: {seeds}. On the whole training set neither has been trained.
"""


def page() -> str:
    """Return the text of docs/results/gap.md."""
    said = {}
    for name in ("fashion-vgg7", "digits-vgg7", "fashion-densenet-bc-22", "digits-densenet-bc-22"):
        result = accuracy.read(name)
        assert result is not None
        (row,) = [row for row in accuracy.rows_of(result) if row.arm == "MSN"]
        assert row.difference is not None
        said[name] = f"{row.difference[0]:+.2f}"
    said |= _won()
    parts = [HEAD.format(**said, tables=" ".join(TABLES))]
    parts += [_table(name) for name in TABLES]
    if DEVIATIONS.is_file():
        parts.append(_deviations(json.loads(DEVIATIONS.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _won() -> dict[str, str]:
    """Return the points over BN, in the mean over the seeds, of what the page names."""
    named = {
        "msn": "MSN",
        "reader": "weights of readers that start at unit deviation",
        "data": "weights that start from data",
    }
    result = accuracy.read("gap-densenet-bc-22")
    assert result is not None
    rows = {row.arm: row for row in accuracy.rows_of(result)}
    over = {key: f"{rows[arm].accuracy - rows[accuracy.BASELINE].accuracy:+.2f}" for key, arm in named.items()}
    return {**over, "seeds": str(rows["MSN"].seeds)}


def _table(name: str) -> str:
    table = tomllib.loads((HERE / "tables" / f"{name}.toml").read_text(encoding="utf-8"))
    result = accuracy.read(name) or {"runs": []}
    rows = {row.arm: row for row in accuracy.rows_of(result)}
    lines: list[str] = []
    missing = []
    for arm in (each["name"] for each in table["arm"]):
        if arm not in rows:
            missing.append(arm)
            continue
        loss = statistics.mean(run["train_loss"] for run in result["runs"] if run["arm"] == arm)
        score, difference = accuracy.said(rows[arm])
        lines.append(f"| {arm} | {score} | {difference} | {loss:.4f} |")
    if lines:
        head = ["| arm | test accuracy, % (seeds) | against BN, points (95 %) | training loss |", "|---|---|---|---|"]
        lines = [*head, *lines]
    if missing:
        lines += [*[""][: len(lines)], f"Not trained yet: {'; '.join(missing)}."]
    return "\n".join([f"## {table['title'].partition(': ')[2]}", "", *lines, ""])


def _deviations(found: dict[str, Any]) -> str:
    lines = ["## How large features are where they are read", ""]
    for table, arms in found["tables"].items():
        title = tomllib.loads((HERE / "tables" / f"{table}.toml").read_text(encoding="utf-8"))["title"]
        lines += [
            f"{title.partition(': ')[2]}; seed 0, up to {found['images']} test images.",
            "Made by `python benchmarks/deviation.py`.",
            "Least, median and largest deviation of a channel. With MSN it is the same before and behind the norm of a",
            "reader, which is a shift alone.",
            "",
            "| read by | BN, before the norm | BN, before the ReLU | MSN |",
            "|---|---|---|---|",
        ]
        for bn, msn in zip(arms["BN"], arms["MSN"], strict=True):
            cells = [_spread(each) for each in (bn["read"], bn["before the ReLU"], msn["before the ReLU"])]
            lines.append(f"| {bn['reader']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)
