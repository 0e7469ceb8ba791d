"""How long does an export take, checks included, beside torch's exporter alone? ResNet-18 for 32x32 and 224x224.

    python benchmarks/peers/export_time.py [--rounds 7] [--out FILE]

Two pairs of arms, which start from FILE.py:FACTORY and end with a file. In this process: `ours` is `export_onnx` (fold,
torch's exporter, certificate, onnxsim, the ONNX checker, and random images through every stage of the ladder), `torch`
is torch.onnx.export alone. As a process of its own, with all that is imported: `command` is `msn-deploy export`,
`script` a file that imports torch and calls torch.onnx.export. A pair takes turns in randomised mirrored order
(A B B A), after one export each that does not count.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resnet18

from msn_deploy.bench.stats import ratio_to_baseline
from msn_deploy.core.optional import version_of
from msn_deploy.graph.export import _quiet
from msn_deploy.machine.environment import read_environment
from msn_deploy.nets.registry import net_from_file
from msn_deploy.pipeline.export import export_onnx

sys.path.append(str(Path(__file__).resolve().parents[1]))
from result import add_out, give

SCHEMA = "msn-deploy-export-time/2"
_LEAST_ROUNDS = 7
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
_COMMAND = [sys.executable, "-m", "msn_deploy", "export", "--quiet"]


def by_torch(source: str, out: Path, side_px: int) -> None:
    model = net_from_file(source)
    with _quiet():
        resnet18.export(model, out, side_px)


def by_us(source: str, out: Path, side_px: int) -> None:
    export_onnx(source, out, input_shape=(1, 3, side_px, side_px))


def by_script(source: str, out: Path, side_px: int) -> None:
    _run([sys.executable, source.rpartition(":")[0], str(side_px), str(out)])


def by_command(source: str, out: Path, side_px: int) -> None:
    _run([*_COMMAND, source, "--input-shape", f"1,3,{side_px},{side_px}", "--out", str(out)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)


Arms = dict[str, Callable[[str, Path, int], None]]
ARMS: Arms = {"ours": by_us, "torch": by_torch}
PROCESSES: Arms = {"command": by_command, "script": by_script}


def one_size(side_px: int, rounds: int) -> dict[str, Any]:
    """Time both pairs on images of one size; seconds per export, two per round and arm, and their ratios."""
    source = f"{resnet18.__file__}:resnet18_{side_px}"
    taken = {**_turns(ARMS, source, side_px, rounds), **_turns(PROCESSES, source, side_px, rounds)}
    ratios = {
        f"{arm}_to_{base}": ratio_to_baseline(np.array(taken[arm]), np.array(taken[base]))
        for arm, base in (tuple(ARMS), tuple(PROCESSES))
    }
    return {
        "net": "ResNet-18",
        "shape": [1, 3, side_px, side_px],
        "median_s": {name: round(float(np.median(each)), 4) for name, each in taken.items()},
        **{name: [round(each, 4) for each in (ratio.ratio, ratio.low, ratio.high)] for name, ratio in ratios.items()},
        "exports_s": {name: [round(one, 4) for one in each] for name, each in taken.items()},
    }


def _turns(arms: Arms, source: str, side_px: int, rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(side_px)
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        for at in range(1 + rounds):
            forth = order.sample(list(arms), len(arms))
            for name in forth if at == 0 else [*forth, *reversed(forth)]:
                start = time.perf_counter()
                arms[name](source, Path(folder) / f"{name}.onnx", side_px)
                if at:
                    taken[name].append(time.perf_counter() - start)
            sys.stderr.write(f"\r{side_px} px, {' and '.join(arms)}: round {at} of {rounds}")
    sys.stderr.write("\n")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_LEAST_ROUNDS, help=f"at least {_LEAST_ROUNDS}")
    add_out(parser)
    options = parser.parse_args()
    if options.rounds < _LEAST_ROUNDS:
        parser.error(f"an interval needs {_LEAST_ROUNDS} rounds")
    logging.getLogger("msn_deploy").setLevel(logging.ERROR)  # that the weights are untrained is known
    result = {
        "schema": SCHEMA,
        "what": "seconds from FILE.py:FACTORY to a file",
        "versions": {name: version_of(name) for name in _VERSIONS},
        "environment": read_environment().to_json(),
        "cases": [one_size(side_px, options.rounds) for side_px in (32, 224)],
    }
    give(result, options.out)


if __name__ == "__main__":
    main()
