"""How long does `msn-deploy --help` take, as a multiple of starting Python at all?

    python benchmarks/startup.py [--pairs 40] [--out FILE]

Both commands run in turns, in an order that changes from pair to pair, with the interpreter that runs this script. The
result is JSON: the ratio of the medians, and the 10th to 90th percentile of the ratios within a pair.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import subprocess
import sys
import time

from result import add_out, give

TARGET = 5.0
WARM_UP = 3
ARMS = {"python": ["-c", "pass"], "help": ["-m", "msn_deploy", "--help"]}


def seconds(args: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measured(pairs: int) -> dict[str, object]:
    order = random.Random(0)
    names = list(ARMS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(WARM_UP + pairs):
        order.shuffle(names)
        for name in names:
            taken = seconds(ARMS[name])
            if round_ >= WARM_UP:
                times[name].append(taken)
    ratios = sorted(help_ / python for help_, python in zip(times["help"], times["python"], strict=True))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["help"] / medians["python"]
    deciles = statistics.quantiles(ratios, n=10)
    return {
        "what": "msn-deploy --help against python -c pass",
        "pairs": pairs,
        "python_median_ms": round(medians["python"] * 1e3, 2),
        "help_median_ms": round(medians["help"] * 1e3, 2),
        "ratio": round(ratio, 3),
        "ratio_p10_p90": [round(deciles[0], 3), round(deciles[-1], 3)],
        "target": TARGET,
        "met": ratio <= TARGET,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "samples_ms": {name: [round(value * 1e3, 3) for value in values] for name, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="at least 20")
    add_out(parser)
    options = parser.parse_args()
    if options.pairs < 20:
        parser.error("fewer than 20 pairs say little")
    give(measured(options.pairs), options.out)


if __name__ == "__main__":
    main()
