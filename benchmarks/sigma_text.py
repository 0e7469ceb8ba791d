"""docs/background/sigma.md, from sigma.json and robustness.json of results/: is sigma right, what are bounds worth?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

RESULTS = Path(__file__).resolve().parent / "results"
_NETS = {
    "cnn3": ("cnn3", "digits"),
    "vgg7": ("VGG7", "digits"),
    "densenet_bc_22": ("DenseNet-BC-22", "2,000 Fashion-MNIST images"),
    "unet": ("U-Net", "pixels of 2,000 Fashion-MNIST images"),
}
_NORMS = {"bn": "BN", "msn": "MSN"}
_WORTH_NOTHING = 1e3  # times what was measured
_NOTHING = """**For such a network the product is worth nothing**: it guarantees
nothing about inputs that were made to mislead. Compare networks by the lower bounds."""
_PAGE = """# Is sigma right, and what do Lipschitz bounds say?

A layer follows the largest singular value of its weight by one power iteration per step. `train` compares sigma with a
singular value decomposition after every epoch, and `python benchmarks/sigma.py` does so at every fifth step.

**At the end of training the largest error of sigma is {worst} %, over all layers of these runs.**
On the way it may lag behind:

{tracked}

The error is the largest of all layers and seeds, in % of the largest singular value; the accuracy is the mean over the
seeds in brackets. With `--set train.power_iterations={most}` sigma is off by {largest_most:.1f} % at most along the
way, with one iteration by {largest_one:.1f} %. {cost}

The residual `||W^T u - sigma v||` does not show the lag: it is small near every singular pair, also near one that
another has overtaken. Sigma is not corrected when a checkpoint is saved. The network was trained with the sigma that
it has, and the fold takes that one; the certificate has both numbers for each layer.

## Lipschitz bounds

`msn_deploy.msn.lipschitz(model, images)` says by how much the logits can move when the prepared input moves by 1, both
as Euclidean norms.

- At least: the largest singular value of the Jacobian at test images.
- At most: the factors of all operations, multiplied along the network. The factor of a convolution is its norm as a map
  of whole images of the size that it sees, zero padding included, by power iteration (which comes from below).
- At most, by matrices: the factor of a convolution is the norm of its weight as a matrix, which is what MSN divides by.
  It is multiplied by the root of the number of windows that a pixel is in: 3 for a 3x3 kernel.
  So `W / sigma` bounds such a convolution by 3, not by 1.

{bounds}

The lower bound is the largest of all runs, the others are medians. The upper bound of {best} is {best_ratio:.0f} times
the lower one, that of {last} {last_ratio:.1g} times. {worth}

## Noise, blur and coarse weights

cnn3, trained on digits by its recipes for {epochs} epochs, {seeds} seeds (`python benchmarks/robustness.py`). The test
images are judged as they are, with noise (deviation on the scale 0..1) and blurred (Gaussian, pixels). Then the folded
weights are rounded to a few bits per output channel.

{robust}

{verdict}
"""


def page() -> str:
    """Return the text of the page."""
    sigma = json.loads((RESULTS / "sigma.json").read_text(encoding="utf-8"))
    trained = json.loads((RESULTS / "robustness.json").read_text(encoding="utf-8"))
    robust = trained["runs"]
    rows = _bounds(sigma["runs"], robust)
    ratios = {name: statistics.median(each["upper"] / each["lower"] for each in found) for name, found in rows.items()}
    best, last = (choose(ratios, key=lambda name: ratios[name]) for choose in (min, max))
    accuracies = {norm: {run["seed"]: run["accuracy"] for run in robust if run["norm"] == norm} for norm in _NORMS}
    seeds = sorted(set.intersection(*map(set, accuracies.values())))
    table, verdict = _robust(accuracies, seeds)
    most = max(int(key.split("/")[1]) for key in sigma["runs"])
    return _PAGE.format(
        worst=_percent(max(abs(error) for run in sigma["runs"].values() for error in run["end"].values())),
        largest_one=_largest(sigma["runs"], 1),
        largest_most=_largest(sigma["runs"], most),
        worth=_NOTHING if ratios[last] > _WORTH_NOTHING else "",
        tracked="\n".join(_tracked(sigma["runs"])),
        most=most,
        cost=_cost(sigma),
        bounds="\n".join(_bounds_table(rows)),
        best=best,
        best_ratio=ratios[best],
        last=last,
        last_ratio=ratios[last],
        epochs=trained["epochs"],
        seeds=len(seeds),
        robust="\n".join(table),
        verdict=verdict,
    )


def _tracked(runs: dict[str, Any]) -> Iterator[str]:
    yield "| network | iterations | 1st quarter | 2nd | 3rd | 4th | end | accuracy, % |"
    yield f"|{'---|' * 8}"
    for net, iterations in dict.fromkeys(tuple(key.split("/")[:2]) for key in runs):
        found = [run for key, run in runs.items() if key.startswith(f"{net}/{iterations}/")]
        looks = zip(*(_quarters([error for _, error in run["looks"]]) for run in found), strict=True)
        cells = [f"{100 * max(errors):.1f}" for errors in looks]
        end = _percent(max(abs(error) for run in found for error in run["end"].values()))
        accuracy = 100 * statistics.mean(run["accuracy"] for run in found)
        name = ", ".join(_NETS[net])
        yield f"| {name} | {iterations} | {' | '.join(cells)} | {end} | {accuracy:.1f} ({len(found)}) |"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share > 1e-4 else "less than 0.01"


def _largest(runs: dict[str, Any], iterations: int) -> float:
    """Return the largest error along the way, in percent."""
    own = (run for key, run in runs.items() if key.split("/")[1] == str(iterations))
    return 100 * max(error for run in own for _, error in run["looks"])


def _quarters(errors: Sequence[float]) -> list[float]:
    size = len(errors)
    return [max(errors[at * size // 4 : (at + 1) * size // 4]) for at in range(4)]


def _cost(sigma: dict[str, Any]) -> str:
    if not sigma["cost"]:
        return "What that costs per step is not measured yet (`python benchmarks/sigma.py --cost`, on an idle machine)."
    ratios = {net: "{:.3f} ({:.3f} to {:.3f})".format(*each["ratio"]) for net, each in sigma["cost"].items()}
    said = ", ".join(f"{_NETS[net][0]} {ratio}" for net, ratio in ratios.items())
    return f"Its step over that of one iteration ({sigma['cost_on']['environment']['cpu']}): {said}."


def _bounds(runs: dict[str, Any], robust: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the bounds of all trained networks, by what they are called."""
    rows = {f"cnn3 with {_NORMS[norm]}": [] for norm in _NORMS}
    for run in robust:
        rows[f"cnn3 with {_NORMS[run['norm']]}"].append(run["lipschitz"])
    for net, (name, _) in _NETS.items():
        found = [run["lipschitz"] for key, run in runs.items() if key.startswith(f"{net}/") and "lipschitz" in run]
        if net != "cnn3" and found:
            rows[f"{name} with MSN"] = found
    return rows


def _bounds_table(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "| network | at least | at most | at most, by matrices | runs |"
    yield "|---|---|---|---|---|"
    for name, found in rows.items():
        upper, matrix = (statistics.median(each[key] for each in found) for key in ("upper", "upper_by_matrix"))
        lower = max(each["lower"] for each in found)
        yield f"| {name} | {lower:.3g} | {upper:.3g} | {matrix:.3g} | {len(found)} |"


def _robust(accuracies: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> tuple[list[str], str]:
    """Return the lines of the table, and what it shows."""
    lines = [f"| test accuracy, % | {' | '.join(_NORMS.values())} | MSN over BN, points (95 %) |"]
    lines.append(f"|{'---|' * (len(_NORMS) + 2)}")
    better, worse = [], []
    for kind in accuracies["bn"][seeds[0]]:
        means = [statistics.mean(100 * accuracies[norm][seed][kind] for seed in seeds) for norm in _NORMS]
        gaps = [100 * (accuracies["msn"][seed][kind] - accuracies["bn"][seed][kind]) for seed in seeds]
        mean, half = statistics.mean(gaps), float(stats.sem(gaps) * stats.t.ppf(0.975, len(gaps) - 1))
        (better if mean > half else worse if mean < -half else []).append(kind)
        cells = " | ".join(f"{each:.1f}" for each in means)
        lines.append(f"| {kind} | {cells} | {mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) |")
    told = [f"{what} BN with {', '.join(each)}" for what, each in (("above", better), ("below", worse)) if each]
    if not told:
        return lines, "No interval excludes zero: these runs show no difference between MSN and BN."
    return lines, f"MSN is {' and '.join(told)}; the other intervals include zero. By chance one of twenty does not."
