"""Train with batches of 1 to 32: VGG7 with 16 channels on Fashion-MNIST, one norm beside the other.

    python benchmarks/tiny_batches.py [STAGE ...] [--work FOLDER] [--jobs N] [--merge]

Stages, in this order, each training once and its result in a file of its own below `--work`, so that the command can be
stopped at any time and typed again. What results/tiny-batches.json holds is not trained again either, except that a new
folder that is to train `field` needs the checkpoints of `base`, and trains all of both:

rate    batch 64, three learning rates: the one with the best mean over the norms is the base of the rule for all
screen  10,000 images, 1 epoch, 2 seeds, batch 1 to 32, all norms
base    50,000 images, 2 epochs, batch 64: one checkpoint per norm to fine-tune
field   fine-tuning it on 2,000 other images from another camera, batch 1 to 4, 5 seeds
whole   60,000 images, 1 epoch, 5 seeds, batch 1 to 4

The rule: Adam, one-cycle, peak learning rate base * sqrt(batch / 64); a tenth of it for fine-tuning. Seed by seed, so
that whatever is there compares all norms. One thread each. Budget: 12 CPU hours; a step of batch 1 takes 5 (BN, GN) to
10 ms (MSN) on a loaded core, all of it some 6 hours. `--merge` writes what is there to results/tiny-batches.json.

The other camera has half of the contrast, a brighter black and noise; its images are drawn once, from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.errors import GateError
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.data import load_split
from msn_deploy.machine.environment import read_environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "tiny-batches.json"
PLOT = ROOT / "docs" / "images" / "tiny-batches.png"
_PANELS = {"screen": "10,000 images", "whole": "60,000 images", "field": "fine-tuning, 2,000 images"}
STAGES = ("rate", "screen", "base", "field", "whole")
ARMS = {  # the norm, and train.freeze
    "bn": ("bn", "none"),
    "bn-frozen": ("bn", "statistics"),
    "gn": ("gn", "none"),
    "msn": ("msn", "none"),
    "msn-affine": ("msn-affine", "none"),
    "none": ("none", "none"),
    "msn-frozen": ("msn", "statistics"),
    "bn-head": ("bn", "backbone"),
    "msn-head": ("msn", "backbone"),
}
_COLOURS = dict(
    zip(
        ARMS,
        ("#3465a4", "#73a5d8", "#8a8a8a", "#c4442c", "#b8860b", "#4e9a06", "#e59866", "#17a2a2", "#75507b"),
        strict=True,
    )
)
SCREENED = ("bn", "bn-frozen", "gn", "msn", "msn-affine", "none")
WHOLE = ("bn", "bn-frozen", "gn", "msn")
FIELD = ("bn", "bn-frozen", "gn", "msn", "msn-affine", "msn-frozen", "bn-head", "msn-head")
NORMS = ("bn", "gn", "msn", "msn-affine", "none")
RATES = (0.001, 0.003, 0.01)
WIDTH, LARGE, SIDE_PX = 16, 64, 28
HELD, FIELD_IMAGES = 50_000, 2_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    stage: str
    arm: str
    batch: int
    seed: int
    images: int
    epochs: int = 1
    rate: float | None = None
    """Peak learning rate; None follows the rule."""

    @property
    def key(self) -> str:
        rate = "" if self.rate is None else f"-{self.rate:g}"
        return f"{self.stage}/{self.arm}-b{self.batch}-s{self.seed}{rate}"


def runs() -> list[Run]:
    """Return every training in the order in which they are made."""
    found = [
        Run(stage="rate", arm=arm, batch=LARGE, seed=100, images=10_000, rate=rate) for rate in RATES for arm in NORMS
    ]
    found += [
        Run(stage="screen", arm=arm, batch=batch, seed=seed, images=10_000)
        for seed in (0, 1)
        for batch in (32, 8, 4, 2, 1)
        for arm in SCREENED
    ]
    bases = dict.fromkeys(ARMS[arm][0] for arm in FIELD)
    found += [Run(stage="base", arm=arm, batch=LARGE, seed=0, images=HELD, epochs=2) for arm in bases]
    for stage, arms, images in (("field", FIELD, FIELD_IMAGES), ("whole", WHOLE, 60_000)):
        found += [
            Run(stage=stage, arm=arm, batch=batch, seed=seed, images=images)
            for seed in range(5)
            for batch in (4, 2, 1)
            for arm in arms
        ]
    return found


def base_rate(found: list[dict[str, Any]]) -> float:
    """Return the learning rate of the stage `rate` with the best mean; a training that diverged counts as 0."""
    accuracy: dict[float, list[float]] = {rate: [] for rate in RATES}
    for each in found:
        if each["stage"] == "rate":
            accuracy[each["learning_rate"]].append(each["test_accuracy"] or 0.0)
    if {len(each) for each in accuracy.values()} != {len(NORMS)}:
        raise SystemExit("the stage `rate` is not finished, and the others take their learning rate from it.")
    return max(RATES, key=lambda rate: statistics.mean(accuracy[rate]))


def recipe_of(run: Run, base: float, work: Path) -> Recipe:
    """Return what a run trains."""
    norm, freeze = ARMS[run.arm]
    rate = base * math.sqrt(run.batch / LARGE) if run.rate is None else run.rate
    if run.stage == "field":
        rate /= 10
    data = {"base": str(work / "data" / "base"), "field": str(work / "data" / "field")}.get(run.stage, "fashion-mnist")
    chosen = load_recipe("vgg7_bn").override(
        norm=norm, data=data, epochs=run.epochs, batch_size=run.batch, learning_rate=rate, seed=run.seed, freeze=freeze
    )
    return replace(chosen, width=WIDTH, fit="pad")


def trained(run: Run, base: float, work: Path) -> dict[str, Any]:
    """Train one run and return its result."""
    from msn_deploy.training import train

    recipe = recipe_of(run, base, work)
    out = work / "runs" / run.key
    started = work / "runs" / f"base/{recipe.norm}-b{LARGE}-s0" / f"{recipe.name}.safetensors"
    result: dict[str, Any] = {
        "stage": run.stage,
        "arm": run.arm,
        "batch": run.batch,
        "seed": run.seed,
        "learning_rate": recipe.train.learning_rate,
        "images": run.images,
        "epochs": run.epochs,
        "test_accuracy": None,
    }
    cpu = time.process_time()
    try:
        made = train(
            recipe,
            out=out,
            device="cpu",
            limit_train=run.images,
            weights=started if run.stage == "field" else None,
            resume=(out / f"{recipe.name}.state.safetensors").is_file(),
        )
        last = made.history[-1]
        result |= {key: last[key] for key in ("test_accuracy", "train_loss", "train_seconds")}
    except GateError as cause:
        result["diverged"] = str(cause).splitlines()[0]
    result["cpu_seconds"] = round(time.process_time() - cpu, 1)
    if run.stage == "base":
        result["before_accuracy"] = _accuracy(made.checkpoint, work / "data" / "field")
    else:
        shutil.rmtree(out, ignore_errors=True)
    return result


def _accuracy(checkpoint: Path, data: Path) -> float:
    """Return the accuracy of a checkpoint on the test images of a folder."""
    from msn_deploy.data import to_input
    from msn_deploy.training import load_checkpoint
    from msn_deploy.training.runner import logits_of

    model, info = load_checkpoint(checkpoint)
    assert info.preprocess is not None
    split = load_split(str(data), "test", **info.preprocess.image_size)
    return float((logits_of(model, to_input(split.images, info.preprocess)).argmax(1) == split.labels).mean())


def write_data(work: Path) -> None:
    """Write the images of `base`, and of `field` as another camera sees them, as IDX files."""
    folder = work / "data"
    if folder.is_dir():
        return
    partial = work / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    size = {"height_px": SIDE_PX, "width_px": SIDE_PX, "channels": 1}
    train, test = (load_split("fashion-mnist", split, **size) for split in ("train", "test"))
    rng = np.random.RandomState(0)
    for name, prefix, images, labels in (
        ("base", "train", train.images[:HELD], train.labels[:HELD]),
        ("base", "t10k", test.images, test.labels),
        ("field", "train", train.images[-FIELD_IMAGES:], train.labels[-FIELD_IMAGES:]),
        ("field", "t10k", test.images, test.labels),
    ):
        pixels = images[..., 0].astype(np.float64)
        if name == "field":
            pixels = 0.5 * pixels + 70 + rng.normal(0, 20, pixels.shape)
        (partial / name).mkdir(parents=True, exist_ok=True)
        for kind, array in (
            ("images-idx3", pixels.round().clip(0, 255).astype(np.uint8)),
            ("labels-idx1", labels.astype(np.uint8)),
        ):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (partial / name / f"{prefix}-{kind}-ubyte").write_bytes(head + array.tobytes())
    partial.rename(folder)


def _path(run: Run, work: Path) -> Path:
    """Return where a run's result lies."""
    return work / "results" / f"{run.key}.json"


def results(work: Path) -> list[dict[str, Any]]:
    """Return the results that are there, in the order of the runs."""
    paths = [_path(run, work) for run in runs()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def merge(work: Path) -> None:
    """Write what is there to one file."""
    found = results(work)
    hours = sum(each["cpu_seconds"] for each in found) / 3600
    result = {
        "schema": 1,
        "environment": read_environment().to_json(),
        "base_learning_rate": base_rate(found),
        "budget_cpu_hours": 12,
        "cpu_hours": round(hours, 2),
        "wanted": {stage: sum(run.stage == stage for run in runs()) for stage in STAGES},
        "runs": found,
    }
    write_json(OUT, result)
    draw(found)


def draw(found: list[dict[str, Any]]) -> None:
    """Draw accuracy against batch size: each training a dot, each norm's mean a line.

    Without the classifier alone: it is so far below the others that these would be one line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for at, (stage, title) in enumerate(_PANELS.items()):
        axes = figure.add_subplot(1, len(_PANELS), at + 1)
        for arm, colour in _COLOURS.items():
            if arm.endswith("-head"):
                continue
            dots = [
                (run["batch"], 100 * run["test_accuracy"])
                for run in found
                if (run["stage"], run["arm"]) == (stage, arm) and run["test_accuracy"] is not None
            ]
            if dots:
                axes.scatter(*zip(*dots, strict=True), s=8, color=colour, alpha=0.6)
                batches = sorted({batch for batch, _ in dots})
                means = [statistics.mean(value for each, value in dots if each == batch) for batch in batches]
                axes.plot(batches, means, color=colour, label=arm, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4] if stage != "screen" else [1, 2, 4, 8, 32], minor=False)
        axes.get_xaxis().set_major_formatter("{x:g}")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("batch")
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


def fill(work: Path, stages: Sequence[str]) -> None:
    """Take over what was trained into another folder, and is in the results' file.

    Not `base` and `field` where they are among the stages to train: those need checkpoints.
    """
    kept = json.loads(OUT.read_text(encoding="utf-8"))["runs"] if OUT.is_file() else []
    anew = {"base", "field"} if "field" in stages else {"base"} & set(stages)
    by_key = {key_of(each): each for each in kept if each["stage"] not in anew}
    for run in runs():
        path = _path(run, work)
        if not path.is_file() and run.key in by_key:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, by_key[run.key])


def key_of(result: dict[str, Any]) -> str:
    """Return the key of the run that a result is of."""
    names = {each: result[each] for each in ("stage", "arm", "batch", "seed", "images", "epochs")}
    return Run(**names, rate=result["learning_rate"] if result["stage"] == "rate" else None).key


def done(run: Run, base: float, work: Path) -> dict[str, Any]:
    """Train one run in this process, and keep its result."""
    import torch

    from msn_deploy.training import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    result = trained(run, base, work)
    path = _path(run, work)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, help="all of them, unless named")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tiny-batches")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--merge", action="store_true", help="train nothing; merge what is there")
    options = parser.parse_args()
    fill(options.work, [] if options.merge else options.stages)
    if not options.merge:
        write_data(options.work)
        start = multiprocessing.get_context("spawn")
        for stage in options.stages:
            todo = [run for run in runs() if run.stage == stage and not _path(run, options.work).is_file()]
            base = base_rate(results(options.work)) if stage != "rate" else 0.0
            with ProcessPoolExecutor(options.jobs, mp_context=start) as pool:
                waiting = {pool.submit(done, run, base, options.work): run for run in todo}
                for at, future in enumerate(as_completed(waiting), start=1):
                    result = future.result()
                    said = result.get("diverged") or f"{result['test_accuracy']:.2%}"
                    print(f"{at}/{len(todo)}  {waiting[future].key}: {said}, {result['cpu_seconds']:.0f} s", flush=True)
    merge(options.work)


if __name__ == "__main__":
    main()
