"""From the measurements of int8.py to a table: what FP16 and INT8 lose, and MSN against BN, seed by seed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from paper import TABLES

from msn_deploy.core.reader import tomllib

RESULT = Path(__file__).resolve().parent / "results" / "int8.json"
_METHOD = "mse"
_KINDS = ("per_channel", "per_tensor")
HEAD = [
    "| points of accuracy lost against FP32, mean (95 % over seeds) | norm | FP32 | FP16 | INT8 "
    "| INT8, one scale per weight | SQNR, dB: INT8 / one scale |",
    "|---|---|---|---|---|---|---|",
]


def text() -> str:
    """Return the table and what became of the network that was built to be hard."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    return f"{table(result)}\n\n{_hard(result['hard'])}"


def _hard(found: dict[str, Any]) -> str:
    said = []
    for arm, hard in found.items():
        plain = {name: 100 * (of["lost"] - of["won"]) / hard["images"] for name, of in hard["plain"].items()}
        verdict = hard["verdict"]
        low, high = (100 * each for each in verdict["interval"])
        others = ", ".join(f"{name} {lost:.1f}" for name, lost in plain.items() if name != _METHOD)
        layers = len(verdict["left_out"])
        said.append(
            f"{arm}: plain INT8 loses {plain[_METHOD]:.1f} points ({others}); verdict {verdict['kind']} with "
            f"{layers} layer{'s' * (layers > 1)} in FP16, drop {100 * verdict['drop']:.2f} ({low:+.2f} to {high:+.2f})"
        )
    return (
        "A network built to be hard (cnn3, MNIST, one channel 1,000 times the others, `--max-drop 0.5pp`): "
        + "; ".join(said)
        + "."
    )


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table, two rows per network, and a line of MSN against BN below each."""
    networks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in sorted(result["runs"], key=lambda each: each["seed"]):
        networks.setdefault(run["table"], {}).setdefault(run["arm"], []).append(run)
    lines = list(HEAD)
    for name, arms in networks.items():
        title = tomllib.loads((TABLES / f"{name}.toml").read_text(encoding="utf-8"))["title"]
        for arm, runs in arms.items():
            fp32 = statistics.mean(100 * run["fp32_right"] / run["images"] for run in runs)
            channel, tensor = ([_found(run, kind) for run in runs] for kind in _KINDS)
            lines.append(
                f"| {title}, {len(runs)} seeds | {arm} | {fp32:.2f} | {_said([_lost(r, r['fp16']) for r in runs])} "
                f"| {_said([_lost(r, c) for r, c in zip(runs, channel, strict=True)])} "
                f"| {_said([_lost(r, t) for r, t in zip(runs, tensor, strict=True)])} "
                f"| {_mean(channel)} / {_mean(tensor)} |"
            )
        if {"BN", "MSN"} <= arms.keys():
            lines.append(_against(arms))
    return "\n".join(lines)


def _against(arms: dict[str, list[dict[str, Any]]]) -> str:
    """One row: MSN minus BN, by seed, of the points lost and of the SQNR."""
    pairs = list(zip(arms["BN"], arms["MSN"], strict=True))
    cells, better = [], []
    for kind in _KINDS:
        found = [(bn, _found(bn, kind), msn, _found(msn, kind)) for bn, msn in pairs]
        cells.append(_said([_lost(msn, b) - _lost(bn, a) for bn, a, msn, b in found], sign=True))
        better.append(_said([b["sqnr_db"] - a["sqnr_db"] for _, a, _, b in found], sign=True, digits=1))
    return f"| | MSN - BN | | | {cells[0]} | {cells[1]} | {' / '.join(better)} |"


def _found(run: dict[str, Any], kind: str) -> dict[str, Any]:
    return run[kind][_METHOD] if kind == "per_channel" else run[kind]


def _lost(run: dict[str, Any], of: dict[str, Any]) -> float:
    return 100 * (of["lost"] - of["won"]) / run["images"]


def _mean(found: list[dict[str, Any]]) -> str:
    return f"{statistics.mean(each['sqnr_db'] for each in found):.1f}"


def _said(values: list[float], *, sign: bool = False, digits: int = 2) -> str:
    """Mean and its 95 % t-interval over the seeds."""
    from scipy import stats

    if not any(values):
        return "0"
    mean = statistics.mean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    text = (
        f"{form.format(mean)} ({f'{{:+.{digits}f}}'.format(mean - half)} to {f'{{:+.{digits}f}}'.format(mean + half)})"
    )
    return text.replace("-0.00 ", "0.00 ") if not sign else text
