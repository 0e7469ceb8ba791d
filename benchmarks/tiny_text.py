"""What docs/guides/fine-tuning.md says of benchmarks/norms.py and benchmarks/tiny_batches.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accuracy

_NORMS = {
    "bn": "BatchNorm",
    "msn": "MSN",
    "msn-affine": "MSN with a gain",
    "sn": "SN",
    "gn": "GroupNorm",
    "ws": "weight standardisation with a gain",
    "gn-ws": "GroupNorm over standardised weights",
    "none": "no norm",
}
_ARMS = {
    **_NORMS,
    "bn-frozen": "BatchNorm, statistics frozen",
    "msn-frozen": "MSN, statistics frozen",
    "bn-head": "BatchNorm, classifier alone",
    "msn-head": "MSN, classifier alone",
}
_TYPE = """<!-- not run: needs images of yours -->
```sh
msn-deploy train vgg7_msn --data fashion-mnist --out base               # at the desk
msn-deploy train vgg7_msn --data FIELD --weights base/vgg7_msn.safetensors --batch-size 2 --lr 0.0002 --out field
msn-deploy export field/vgg7_msn.safetensors --out field/vgg7_msn.onnx
msn-deploy bench base/vgg7_msn.onnx field/vgg7_msn.onnx                  # says "same graph"
```"""


def page(root: Path) -> str:
    """Return docs/guides/fine-tuning.md."""
    results = root / "benchmarks" / "results"
    norms = json.loads((results / "norms.json").read_text(encoding="utf-8"))
    path = results / "tiny-batches.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    parts = [
        "# Fine-tuning, and batches of 1 to 4",
        "A network that is trained on a device sees few images, and only batches of 1 to 4 fit. This page says what to "
        "type, what it takes, what to freeze, and how the norms compare.",
        "## What to type",
        _TYPE,
        "`--weights` starts from a checkpoint of the same network, or from any file of weights that fits it. If the "
        "number of classes differs, the classifier starts anew, and a message says so. Anything else that does not fit "
        "is named (exit code 2). Nothing is unpickled. Images are prepared with the mean and the deviation of the "
        "checkpoint, as on the device. `--resume` works as without `--weights`. The trainings below use a tenth of the "
        "learning rate from scratch, times the square root of the batch over 64.",
        "`--set train.freeze=statistics` keeps the running statistics of the norms (mean and variance of BN; mean, u "
        "and v of MSN) and normalises by them in training, too. `--set train.freeze=backbone` trains the classifier "
        "alone.",
        "## What goes back to the device",
        "The same graph with other weights. The structural hash of both files is equal, `bench` says so, and the "
        "latency stays the same. A TensorRT timing cache of the first build serves the second (`build-engine "
        "--timing-cache`), because it holds times of layers by shape and type. INT8 ranges belong to the old weights: "
        "calibrate again.",
        "## Memory",
        *_memory(norms),
        "## What each norm costs behind the export",
        *_graphs(norms),
        "## Accuracy with tiny batches",
        *([_NOTHING] if runs is None else _accuracy(runs)),
    ]
    return "\n\n".join(parts) + "\n"


_NOTHING = "Not measured yet: `make tiny-batches`."


def _memory(norms: dict[str, Any]) -> list[str]:
    batches = norms["batches"]
    found = {(each["norm"], each["freeze"]): each for each in norms["memory"]}
    shown = [(norm, "none") for norm in _NORMS] + [("bn", "statistics"), ("msn", "statistics"), ("msn", "backbone")]
    names = {"statistics": "statistics frozen", "backbone": "classifier alone"}
    rows = []
    for norm, what in shown:
        each = found[norm, what]
        title = _NORMS[norm] + (f", {names[what]}" if what in names else "")
        if what == "backbone":
            title = "any norm, classifier alone"
        rows.append([title, f"{each['learning']:,}", *(f"{size / 2**20:.3f}" for size in each["bytes"])])
    bn, msn = (found[norm, "none"]["bytes"] for norm in ("bn", "msn"))
    over = [batch for batch, ours, theirs in zip(batches, msn, bn, strict=True) if ours > theirs]
    said = (
        f"With a batch of {' or '.join(map(str, over))} MSN keeps more than BN here: the weight divided by sigma is "
        "kept next to the weight, and with few and small images that is more than the activations which BN keeps "
        "twice. "
        if over
        else ""
    )
    head = ["MiB kept for the backward; batch", "numbers that learn", *map(str, batches)]
    return [
        f"VGG7 with {norms['width']} channels, 32x32 pixels, float32: what a training step keeps between forward and "
        "backward, parameters apart (`make norms`). The optimizer adds 12 bytes for each number that learns (gradient "
        "and both of Adam's averages).",
        _table(head, rows),
        f"{said}{_frozen(found)} A frozen backbone saves nearly all of it.",
    ]


def _frozen(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Say what frozen statistics do to the memory of the largest batch."""
    bn, msn = (found[norm, "statistics"]["bytes"][-1] / found[norm, "none"]["bytes"][-1] for norm in ("bn", "msn"))
    return (
        f"With frozen statistics BN keeps {bn:.2f} and MSN {msn:.2f} times as much as without, at the largest batch "
        "here" + (": MSN then divides the weight by sigma and keeps both." if msn > 1 else ".")
    )


def _graphs(norms: dict[str, Any]) -> list[str]:
    latency = norms.get("latency")
    plain = norms["graphs"]["none"]
    rows = []
    for norm, title in _NORMS.items():
        graph = norms["graphs"][norm]
        left = graph["norms_left"]
        more = {key: count - plain["operators"].get(key, 0) for key, count in graph["operators"].items()}
        beside = ", ".join(f"{count} {key}" for key, count in more.items() if count > 0)
        row = [
            f"`{norm}`: {title}",
            "yes" if not left else f"no, {left} stay",
            str(graph["nodes"]),
            beside,
            f"{graph['activation_bytes'] / plain['activation_bytes']:.2f}",
        ]
        if latency:
            arm = latency["arms"][norm]
            is_base = norm == "bn"
            row.append("1" if is_base else "{:.2f} ({:.2f} to {:.2f})".format(arm["ratio"], *arm["interval"]))
        rows.append(row)
    head = ["norm", "folds", "nodes", "beside those of no norm", "activations moved"]
    head += ["latency, BN is 1"] if latency else []
    said = (
        f"Latency: ONNX Runtime on one thread, batch 1, {latency['environment']['cpu']}, interleaved, 95 % intervals. "
        if latency
        else ""
    )
    return [
        f"VGG7 with {norms['width']} channels, exported (`make norms`). What folds becomes the same plain graph, with "
        "the same latency. GroupNorm normalises by its own input and stays in the graph; `export` says so "
        f"(`INPUT_DEPENDENT`). {said}`--norm gn`, `ws` and `gn-ws` work with every recipe.",
        _table(head, rows),
    ]


def _accuracy(result: dict[str, Any]) -> list[str]:
    base = result["base_learning_rate"]
    done = {stage: [run for run in result["runs"] if run["stage"] == stage] for stage in result["wanted"]}
    made = ", ".join(f"{stage} {len(done[stage])} of {count}" for stage, count in result["wanted"].items())
    parts = [
        "`make tiny-batches`: VGG7 with 16 channels, Adam with one-cycle, one epoch, the peak learning rate "
        f"{base:g} * sqrt(batch / 64) for all norms; {base:g} is the best in the mean of the norms at batch 64 of "
        "0.001, 0.003 and 0.01. Test accuracy in %, mean ± deviation (seeds); differences to BatchNorm of the same "
        "seed and batch in points, with a 95 % t-interval from three seeds on. Trainings that are there: "
        f"{made}; {result['cpu_hours']:.1f} of {result['budget_cpu_hours']} CPU hours "
        f"({result['environment']['cpu']}). Raw: `benchmarks/results/tiny-batches.json`.",
        "![Accuracy against batch size](../images/tiny-batches.png)",
    ]
    shown = [(stage, base) for stage in _STAGES for base in ("bn", "gn") if _over(done[stage], base)]
    if shown:
        batches = sorted({batch for stage, base in shown for batch in _over(done[stage], base)})
        rows = []
        for stage, base in shown:
            over = _over(done[stage], base)
            cells = [_points(over[batch]) if batch in over else "" for batch in batches]
            rows.append([f"{_NORMS[base]}, {_STAGES[stage]}", *cells])
        parts += ["What MSN has over the two, in points:", _table(["over; batch", *map(str, batches)], rows)]
    for title, stage in (
        ("The whole Fashion-MNIST", "whole"),
        ("10,000 images", "screen"),
        ("Fine-tuning on 2,000 images of another camera", "field"),
    ):
        parts += [f"### {title}", *(_stage(done, stage) if done[stage] else ["No training of this is there yet."])]
    return parts


def why(result: dict[str, Any]) -> str:
    """Return what MSN has over BatchNorm with batches of 1 and with the others, in a sentence."""
    single, others = [], {}
    for stage, how in _STAGES.items():
        over = _over([run for run in result["runs"] if run["stage"] == stage], "bn")
        single.append(f"{_points(over[1])} {how}")
        others |= {(stage, batch): over[batch][0] for batch in over if batch > 1}
    batches = " and ".join(str(batch) for batch in sorted({batch for _, batch in others}))
    return (
        f"With a batch of 1, MSN over BatchNorm has {' and '.join(single)}, in points of accuracy; with {batches}, "
        f"{min(others.values()):+.2f} to {max(others.values()):+.2f} (VGG7 on Fashion-MNIST, 95 % intervals)."
    )


_STAGES = {"whole": "from scratch", "field": "fine-tuned"}


def _over(runs: list[dict[str, Any]], base: str) -> dict[int, tuple[float, float, float]]:
    """Return by batch size what MSN has over a norm, in points: mean and interval, of three pairs of seeds or more."""
    found = {}
    for batch in {run["batch"] for run in runs}:
        rows = _rows([run for run in runs if run["batch"] == batch], base)
        if "msn" in rows and rows["msn"].difference is not None:
            found[batch] = rows["msn"].difference
    return found


def _points(difference: tuple[float, float, float]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*difference)


def _stage(done: dict[str, list[dict[str, Any]]], stage: str) -> Iterable[str]:
    runs = done[stage]
    batches = sorted({run["batch"] for run in runs})
    cells = {batch: _by_arm([run for run in runs if run["batch"] == batch]) for batch in batches}
    rows = [
        [_ARMS[arm], *(cells[batch].get(arm, "") for batch in batches)]
        for arm in dict.fromkeys(run["arm"] for run in runs)
    ]
    if stage == "field":
        before = ", ".join(f"{_ARMS[each['arm']]} {each['before_accuracy']:.1%}" for each in done["base"])
        sure = ", ".join(f"{_ARMS[each['arm']]} {each['test_accuracy']:.1%}" for each in done["base"])
        yield (
            "One checkpoint per norm, trained on 50,000 images (2 epochs, batch 64), meets a camera with half of the "
            f"contrast, a brighter black and noise. With the old camera: {sure}; with the new one: {before}. Then one "
            "epoch over 2,000 of its images, at a tenth of the learning rate:"
        )
    if stage == "screen":
        yield (
            "Frozen statistics from scratch are those of the start, mean 0 and variance 1: what is left of the norm is "
            "its gain and its shift."
        )
    yield _table(["batch", *map(str, batches)], rows)
    lost = [f"{_ARMS[run['arm']]} at batch {run['batch']}, seed {run['seed']}" for run in runs if "diverged" in run]
    if lost:
        yield f"Diverged, and left out of the means: {'; '.join(lost)}."


def _by_arm(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return the cell of each arm of one batch size."""
    return {arm: " ".join(filter(None, accuracy.said(row))) for arm, row in _rows(runs, "bn").items()}


def _rows(runs: list[dict[str, Any]], base: str) -> dict[str, accuracy.Row]:
    """Return each arm of one batch size, compared with one of them."""
    trained = [
        {**run, "arm": accuracy.BASELINE if run["arm"] == base else run["arm"], "recipe": {}}
        for run in runs
        if run["test_accuracy"] is not None
    ]
    return {base if row.arm == accuracy.BASELINE else row.arm: row for row in accuracy.rows_of({"runs": trained})}


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
