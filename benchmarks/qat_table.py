"""From the measurements of qat.py to tables: what calibration loses, what training under INT8 wins back, MSN and BN."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "qat"
STEPS = RESULTS.with_name("qat-steps.json")
HEAD = [
    "| case | norm, seeds | float | calibrated loses | trained loses | won back | epoch kept | CPU minutes |",
    "|---|---|---|---|---|---|---|---|",
]
ENOUGH, WANTED = 0.5, 80.0  # points that calibration loses, and the share that training is to win back


def read(folder: Path = RESULTS) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the runs of each case and arm, by seed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        title = run["title"] + ", distilled" * run["distilled"]
        found.setdefault((title, run["arm"]), []).append(run)
    return {key: sorted(runs, key=lambda run: int(run["seed"])) for key, runs in found.items()}


def interval(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and half of the 95 % t-interval over the seeds, None for fewer than three."""
    from scipy import stats

    mean = statistics.mean(values)
    if len(values) < 3:
        return mean, None
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def lost(runs: list[dict[str, Any]], name: str) -> tuple[float, float | None]:
    """Return how many points a precision loses against float, seed by seed."""
    return interval([100 * (run["float"] - run[name]) for run in runs])


def difference(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the row of what MSN has and loses more than BN, seed by seed; nothing where they share no seed."""
    pairs = [(msn, bn) for msn in runs["MSN"] for bn in runs["BN"] if msn["seed"] == bn["seed"]]
    if not pairs:
        return ""
    value = statistics.mean(100 * (msn["float"] - bn["float"]) for msn, bn in pairs)
    more = {
        name: interval([100 * (msn["float"] - msn[name] - bn["float"] + bn[name]) for msn, bn in pairs])
        for name in ("ptq", "qat")
    }
    return f"| | MSN - BN, {len(pairs)} | {value:+.2f} | {_said(more['ptq'])} | {_said(more['qat'])} | | | |"


def text(folder: Path = RESULTS) -> str:
    """Return the table, and what of it misses its goal."""
    runs = read(folder)
    if not runs:
        return "Not measured yet: `python benchmarks/qat.py`."
    lines, missed = list(HEAD), list[str]()
    for (title, arm), each in runs.items():
        before, after = lost(each, "ptq"), lost(each, "qat")
        is_hard = before[0] > ENOUGH and before[0] > (before[1] or 0.0)
        share = 100 * (1 - after[0] / before[0]) if is_hard else None
        too_little = share is not None and share < WANTED
        worse, half = interval([100 * (run["ptq"] - run["qat"]) for run in each])
        if too_little or (half is not None and worse > half):
            missed.append(f"{title}, {arm}")
        epochs = ", ".join(str(run["epoch"]) for run in each)
        minutes = statistics.mean(run["cpu_minutes"] for run in each)
        value = 100 * statistics.mean(run["float"] for run in each)
        back = f"{share:.0f} %" if share is not None else "-"
        lines.append(
            f"| {title} ({each[0]['metric']}) | {arm}, {len(each)} | {value:.2f} | {_said(before)} | {_said(after)} "
            f"| {back} | {epochs} | {minutes:.1f} |"
        )
        if arm == "MSN":
            lines += filter(None, [difference({name: runs.get((title, name), []) for name in ("BN", "MSN")})])
    worst = max(run["apart"] for each in runs.values() for run in each)
    how = f" within {worst:.0e} of their range" if worst else ", bit for bit"
    images = {run["images"] for each in runs.values() for run in each}
    lines += [
        "",
        "Points of the metric, mean over the seeds (95 % interval from three seeds on). Won back: where calibration "
        f"loses more than {ENOUGH} points and more than its interval. Epoch 0 is the calibrated start. MSN - BN: below "
        f"0 MSN loses less. The exported files give the training's own outputs{how}, on whole test splits of "
        f"{min(images)} images or more.",
    ]
    engines = [run["engine"] for each in runs.values() for run in each if "engine" in run]
    if engines:
        whole = sum(not engine["not_int8"] for engine in engines)
        lines[-1] += (
            f" {engines[0]['builder']} builds {whole} of {len(engines)} files that were given to it with every placed "
            "layer in INT8."
        )
    if missed:
        lines += [
            "",
            f"Less than {WANTED:.0f} % won back, or worse than calibration beyond the interval: {'; '.join(missed)}.",
        ]
    return "\n".join([*lines, "", steps()] if folder == RESULTS else lines)


def steps() -> str:
    """Return how far PyTorch and ONNX Runtime are apart with other steps, and with biases that are not on the grid."""
    rows = [row for each in json.loads(STEPS.read_text(encoding="utf-8"))["networks"].values() for row in each]

    def of(bits: list[int], grid: bool) -> tuple[float, float]:
        chosen = [row for row in rows if (row["bits"], row["biases_on_grid"]) == (bits, grid)]
        return max(row["share_beyond_1e-4"] for row in chosen), max(row["worst"] for row in chosen)

    (ours, free, unbound) = of([1, 4, 2], True), of([24, 24, 24], True), of([1, 4, 2], False)
    then = f"apart by {ours[1]:.0e} of their range at most" if ours[1] else "the same, bit for bit"
    return (
        "Why steps have few bits, and biases lie on their grid: of four calibrated networks, PyTorch's outputs and "
        f"those of ONNX Runtime are then {then}. With steps of 24 bits, up to "
        f"{free[0]:.1%} of the images have an output that is off by more than 1e-4, by {free[1]:.0e} at most; with "
        f"free biases, up to {unbound[0]:.0%}, by {unbound[1]:.0e} at most (`benchmarks/results/qat-steps.json`)."
    )


def _said(value: tuple[float, float | None]) -> str:
    mean, half = value
    mean = round(mean, 2) + 0.0  # no -0.00
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


if __name__ == "__main__":
    print(text())
