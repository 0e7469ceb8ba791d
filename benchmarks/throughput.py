"""Does the trainer cost anything beside the training, and does its loader keep up?

    python benchmarks/throughput.py [--threads N] [--out FILE]

trainer    an epoch of `msn-deploy train` (shuffle, gather, normalise, schedule, progress) against a bare loop over
           batches that lie ready as float32 tensors: forward, backward, step
loader     an epoch of batches alone, with crop and flip: ours against torch's DataLoader that treats image by image,
           in this process and in two workers

Each query is one epoch; arms take turns in rounds of randomised mirrored order. Bundled digits, so nothing is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from result import add_out, give
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.progress import silent
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data import Split, load_split
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.machine.environment import read_environment
from msn_deploy.nets import build_net
from msn_deploy.training import keep_freed_memory
from msn_deploy.training.batches import Batches
from msn_deploy.training.distributed import World
from msn_deploy.training.loop import Training
from msn_deploy.training.optimizer import make_optimizer

CPU = torch.device("cpu")
STEPS = {"cnn3": 10, "vgg7": 4}
LOADED = 8192


def trainer_arms(net: str, norm: str) -> list[Arm]:
    """Return the bare loop and the trainer, on the same images and the same network."""
    recipe = load_recipe(f"{net}_{norm}").override(batch_size=64)
    _, channels, height, width = recipe.input_shape
    size: dict[str, Any] = {"height_px": height, "width_px": width, "channels": channels}
    split = load_split("digits", "train", **size).first(64 * STEPS[net])
    prep = measured_preprocess(split.images)
    info = ModelInfo(net=net, norm=norm, classes=split.classes, preprocess=prep, recipe=recipe.to_dict())
    world = World(rank=0, size=1, device=CPU)
    run = Training(
        recipe, split, split.first(2), info=info, out=Path(mkdtemp()), limit_train=None, world=world, weights=None
    )
    ready = list(Batches(split, prep, recipe.train, device=CPU).epoch(0))
    model = build_net(recipe, classes=len(split.classes)).train()
    optimizer = make_optimizer(model, recipe.train)

    def bare() -> None:
        for images, labels in ready:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return [Arm(name="bare loop", run=bare), Arm(name="trainer", run=lambda: run._epoch(0, run.model, silent, None))]


class Images(Dataset[tuple[Tensor, Tensor]]):
    """What a data set for torch's DataLoader usually is: one image at a time, cropped, flipped and normalised."""

    def __init__(self, split: Split, scale: Tensor, offset: Tensor) -> None:
        self.images = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2).contiguous()
        self.labels, self.scale, self.offset = torch.from_numpy(split.labels), scale, offset

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.images[at], (4, 4, 4, 4))
        down, right, flip = torch.randint(9, (3,)).tolist()
        image = image[:, down : down + 32, right : right + 32]
        if flip % 2:
            image = image.flip(2)
        return image.float().mul_(self.scale).add_(self.offset), self.labels[at]


def loader_arms() -> list[Arm]:
    """Return the ways to load, all with batches of 64 images of 3x32x32."""
    digits = load_split("digits", "train", height_px=32, width_px=32, channels=3)
    many = np.arange(LOADED) % len(digits.labels)
    split = replace(digits, images=digits.images[many], labels=digits.labels[many])
    prep = measured_preprocess(split.images)
    options = replace(load_recipe("vgg7_msn").train, augment="crop-flip", batch_size=64)
    ours = Batches(split, prep, options, device=CPU)
    data = Images(split, ours.scale.view(-1, 1, 1), ours.offset.view(-1, 1, 1))

    def drain(batches: Any) -> None:
        for images, _ in batches:
            images[0, 0, 0, 0].item()

    arms = [Arm(name="ours", run=lambda: drain(ours.epoch(0)))]
    for workers in (0, 2):
        loader = DataLoader(data, 64, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        arms.append(Arm(name=f"DataLoader, {workers} workers", run=lambda loader=loader: drain(loader)))
    return arms


def compared(title: str, arms: list[Arm], images: int, seconds: float) -> dict[str, Any]:
    """Measure arms against the first and return throughputs, ratios of time and raw samples."""
    options = MeasureOptions(seconds=seconds, warmup_seconds=0.5, warmup_queries=1, block_ms=1, settle_queries=0)
    samples = measure(arms, options=options)
    medians = {arm.name: block_medians(arm.blocks) for arm in samples.arms}
    rows = {}
    for name, each in medians.items():
        row: dict[str, Any] = {"images_per_s": round(images / (float(np.median(each)) / 1e9), 1)}
        if name != arms[0].name:
            ratio = ratio_to_baseline(each, medians[arms[0].name])
            # Of throughputs, so the inverse of that of times.
            row["throughput_ratio"] = [round(1 / value, 4) for value in (ratio.ratio, ratio.high, ratio.low)]
        rows[name] = row
        shown = row.get("throughput_ratio")
        sys.stderr.write(f"{title:<24}{name:<24}{row['images_per_s']:>10.0f} images/s  {shown or ''}\n")
    raw = {arm.name: [round(block[0] / 1e6, 2) for block in arm.blocks] for arm in samples.arms}
    return {"case": title, "baseline": arms[0].name, "rows": rows, "epochs_ms": raw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=20, help="measured time per arm and case, s")
    add_out(parser)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    cases = [
        compared(f"{net}, {norm}", trainer_arms(net, norm), 64 * STEPS[net], options.seconds)
        for net, norm in (("cnn3", "bn"), ("cnn3", "msn"), ("vgg7", "bn"), ("vgg7", "msn"))
    ]
    cases.append(compared("loader", loader_arms(), LOADED, options.seconds))
    result = {
        "schema": 1,
        "threads": options.threads,
        "torch": torch.__version__,
        "environment": read_environment().to_json(),
        "cases": cases,
    }
    give(result, options.out)


if __name__ == "__main__":
    main()
