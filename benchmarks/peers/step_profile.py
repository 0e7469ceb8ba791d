"""Where does a training step of BatchNorm and of MSN spend more time than one without a norm?

    python benchmarks/peers/step_profile.py [--steps 10] [--only vgg7] [--out FILE]

torch's profiler, one process, arms in turn; the time of each operation itself, without what it calls, in five groups.
A profiler makes small operations look longer than they are: the ratios of steps are those of train_step.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from train_step import BATCH, LAYOUTS
from train_step_arms import Trainer

from msn_deploy.machine.environment import read_environment
from msn_deploy.training import keep_freed_memory

sys.path.append(str(Path(__file__).resolve().parents[1]))
from result import add_out, give

ARMS = ("none", "bn", "msn")
GROUPS = {
    "convolutions": ("convolution", "_ConvOverSigma"),
    "passes over activations": ("batch_norm", "NativeBatchNorm", "sum", "SumBackward", "add", "AddBackward", "clone"),
    "the weights' norm": (
        *(
            "mv",
            "addmv",
            "dot",
            "addr",
            "div",
            "linalg_vector_norm",
            "_OverSigma",
            "clamp_min",
            "lerp",
            "bmm",
            "unfold",
        ),
        *("mul", "sub", "neg", "reciprocal", "DivBackward", "SubBackward", "BmmBackward", "UnfoldBackward", "mean"),
    ),
    "activation functions": ("relu", "threshold", "hardtanh", "Relu", "Hardtanh", "clamp"),
}
"""What the names of operations begin with; the rest is the fifth group, "others"."""


def group_of(name: str) -> str:
    """Return the group of an operation by its name, such as "aten::addmv_": the longest of all beginnings decides."""
    bare = name.removeprefix("autograd::engine::evaluate_function: ").removeprefix("aten::").removeprefix("native_")
    bare = bare.removeprefix("mkldnn_").removeprefix("_native_")
    found = [(len(start), group) for group, starts in GROUPS.items() for start in starts if bare.startswith(start)]
    return max(found)[1] if found else "others"


def profiled(net: str, layout: str, steps: int) -> dict[str, dict[str, float]]:
    """Return for each arm the milliseconds per step of each group."""
    trainers = {
        arm: Trainer(net, arm, batch=BATCH["cpu"][net], layout=layout, dtype="float32", device="cpu") for arm in ARMS
    }
    spent: dict[str, dict[str, float]] = {arm: defaultdict(float) for arm in ARMS}
    for trainer in trainers.values():
        trainer.step()
    for _ in range(steps):
        for arm, trainer in trainers.items():
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                trainer.step()
            for event in seen.key_averages():
                spent[arm][group_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    return {arm: {group: round(value, 3) for group, value in groups.items()} for arm, groups in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="networks, by comma; all by default")
    add_out(parser)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    nets = options.only.split(",") if options.only else list(BATCH["cpu"])
    result = {
        "schema": "msn-deploy-step-profile/1",
        "what": "milliseconds per training step in each group of operations, by torch's profiler",
        "threads": options.threads,
        "torch": torch.__version__,
        "environment": read_environment().to_json(),
        "cases": [
            {"net": net, "layout": layout, "batch": BATCH["cpu"][net], "arms": profiled(net, layout, options.steps)}
            for net in nets
            for layout in LAYOUTS
        ],
    }
    give(result, options.out)


if __name__ == "__main__":
    main()
