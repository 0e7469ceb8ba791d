"""How long does an export take, checks included, beside torch's exporter alone? ResNet-18 for 32x32 and 224x224.

    python benchmarks/peers/export_time.py [--rounds 7] [--out FILE]

Both arms start from FILE.py:FACTORY and end with a file. `ours` is `export_onnx`: fold, torch's exporter, onnxsim, the
ONNX checker, and 32 images through the network and through the file in ONNX Runtime. `torch` is torch.onnx.export
alone. They take turns in randomised mirrored order (A B B A), after one export each that does not count.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphs_nets import ResNet18
from torch import nn

from msn_deploy.bench.environment import read_environment
from msn_deploy.bench.stats import ratio_to_baseline
from msn_deploy.core.optional import version_of
from msn_deploy.graph.export import _quiet
from msn_deploy.nets.factory import net_from_file
from msn_deploy.pipeline.export import export_onnx

SCHEMA = "msn-deploy-export-time/1"
_LEAST_ROUNDS = 7
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


def resnet18_32() -> nn.Module:
    """Return ResNet-18 with its first layer for 32x32 images, untrained."""
    return ResNet18().eval()


def resnet18_224() -> nn.Module:
    """Return ResNet-18 with its first layer for 224x224 images, untrained."""
    return ResNet18(large=True).eval()


def by_torch(source: str, out: Path, side_px: int) -> None:
    """Export as torch's documentation has it."""
    model = net_from_file(source)
    with _quiet():
        torch.onnx.export(model, (torch.zeros(1, 3, side_px, side_px),), out, dynamo=True, external_data=False)


def by_us(source: str, out: Path, side_px: int) -> None:
    export_onnx(source, out, input_shape=(1, 3, side_px, side_px))


ARMS: dict[str, Callable[[str, Path, int], None]] = {"ours": by_us, "torch": by_torch}


def one_size(side_px: int, rounds: int) -> dict[str, Any]:
    """Time both arms on images of one size; seconds per export, two per round and arm, and their ratio."""
    source = f"{__file__}:resnet18_{side_px}"
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    order = random.Random(side_px)
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        for at in range(1 + rounds):
            forth = order.sample(list(ARMS), len(ARMS))
            for name in forth if at == 0 else [*forth, *reversed(forth)]:
                start = time.perf_counter()
                ARMS[name](source, Path(folder) / f"{name}.onnx", side_px)
                if at:
                    taken[name].append(time.perf_counter() - start)
            sys.stderr.write(f"\r{side_px} px: round {at} of {rounds}")
    sys.stderr.write("\n")
    ratio = ratio_to_baseline(np.array(taken["ours"]), np.array(taken["torch"]))
    return {
        "net": "ResNet-18",
        "shape": [1, 3, side_px, side_px],
        "median_s": {name: round(float(np.median(each)), 4) for name, each in taken.items()},
        "ours_to_torch": [round(each, 4) for each in (ratio.ratio, ratio.low, ratio.high)],
        "exports_s": {name: [round(one, 4) for one in each] for name, each in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_LEAST_ROUNDS, help=f"at least {_LEAST_ROUNDS}")
    parser.add_argument("--out", type=Path, help="write the JSON here instead of printing it")
    options = parser.parse_args()
    if options.rounds < _LEAST_ROUNDS:
        parser.error(f"an interval needs {_LEAST_ROUNDS} rounds")
    logging.getLogger("msn_deploy").setLevel(logging.ERROR)  # that the weights are untrained is known
    result = {
        "schema": SCHEMA,
        "what": "seconds from FILE.py:FACTORY to a file",
        "versions": {name: version_of(name) for name in _VERSIONS},
        "environment": read_environment(),
        "cases": [one_size(side_px, options.rounds) for side_px in (32, 224)],
    }
    text = json.dumps(result) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
