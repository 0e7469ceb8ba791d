"""Do memory and open handles stay flat while `infer` goes through many images, and while `bench` runs for minutes?

    python benchmarks/long_run.py [--images 20000] [--minutes 10] [--out FILE]

A cnn3 is trained for an epoch on the bundled digits and exported; the images are these digits as PNG and JPEG files, of
which one in a thousand is cut off. Both commands run as processes of their own, looked at once a second by /proc: the
resident memory, open files and threads of the process and of those that it starts. Exit code 1 if memory grows by more
than 5 MiB, or handles or threads by one, from the second fifth of a run to the last. `bench` keeps a sample of each
query, 8 bytes, up to 2 million of an arm; these are taken off its growth. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msn_deploy.core.artifacts import write_json
from msn_deploy.data import load_split
from msn_deploy.machine.environment import machine_name, read_environment

SCHEMA = "msn-deploy-long-run/1"
OUT = Path(__file__).resolve().parent / "results" / machine_name(read_environment()) / "long-run.json"
DAMAGED_EVERY = 1000  # images
MOST_MIB = 5.0
KEPT = 300  # rows of a run that are written


@dataclass(frozen=True)
class Look:
    """A process and those that it has started, at one moment."""

    seconds: float
    memory_mib: float
    handles: int
    threads: int


def looked_at(pid: int, seconds: float) -> Look | None:
    """Return what /proc says, or None where the process has ended."""
    memory = handles = threads = 0
    waiting = [pid]
    try:
        for each in waiting:  # grows while it is walked
            proc = Path("/proc", str(each))
            memory += int((proc / "statm").read_text().split()[1]) * 4
            handles += len(list((proc / "fd").iterdir()))
            tasks = list((proc / "task").iterdir())
            threads += len(tasks)
            waiting += [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (OSError, IndexError):
        return None
    return Look(seconds, memory / 1024, handles, threads)


def watched(args: list[str], stdout: Path) -> tuple[list[Look], int]:
    """Run msn-deploy to its end; return a look for each second, and the exit code."""
    looks, began = [], time.monotonic()
    with stdout.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "msn_deploy", *args], stdout=out, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if (look := looked_at(process.pid, round(time.monotonic() - began, 1))) is not None:
                looks.append(look)
            time.sleep(1)
    return looks, process.returncode


def made_images(folder: Path, count: int) -> None:
    """Write digits of the bundled test images, a few hundred to a folder."""
    images = load_split("digits", "test", height_px=28, width_px=28, channels=1).images[..., 0]
    draw = np.random.default_rng(0)
    for at in range(count):
        place = folder / f"{at // 500:04d}"
        place.mkdir(exist_ok=True)
        path = place / f"{at:06d}.{'jpg' if at % 3 == 0 else 'png'}"
        Image.fromarray(images[draw.integers(len(images))]).save(path)
        if at % DAMAGED_EVERY == 1:
            path.write_bytes(path.read_bytes()[:60])


def judged(looks: list[Look], *, own_mib: float = 0.0) -> dict[str, Any]:
    """Return by how much a run grows from its second fifth to its last. own_mib: memory that is meant to grow."""
    fifth = max(1, len(looks) // 5)
    early, late = looks[fifth : 2 * fifth] or looks, looks[-fifth:]

    def growth(name: str) -> float:
        return statistics.median(getattr(each, name) for each in late) - statistics.median(
            getattr(each, name) for each in early
        )

    grown = {name: round(growth(name), 2) for name in ("memory_mib", "handles", "threads")}
    return {
        "seconds": looks[-1].seconds,
        "largest_mib": round(max(each.memory_mib for each in looks), 1),
        "most_handles": max(each.handles for each in looks),
        "grown": grown,
        "meant_to_grow_mib": round(own_mib, 1),
        "flat": grown["memory_mib"] - own_mib <= MOST_MIB and grown["handles"] < 1 and grown["threads"] < 1,
        "looks": [asdict(each) for each in looks[:: max(1, len(looks) // KEPT)]],
    }


def measured(folder: Path, count: int, minutes: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each run by its name."""
    for args in (
        ["train", "cnn3_msn", "--epochs", "1", "--out", str(folder)],
        ["export", str(folder / "cnn3_msn.safetensors"), "--out", str(folder / "m.onnx")],
        ["export", str(folder / "cnn3_msn.safetensors"), "--no-fold", "--out", str(folder / "n.onnx")],
    ):
        subprocess.run([sys.executable, "-m", "msn_deploy", *args, "-q"], check=True, stdout=subprocess.DEVNULL)
    images, answers = folder / "images", folder / "answers.jsonl"
    images.mkdir()
    made_images(images, count)
    looks, code = watched(["infer", str(folder / "m.onnx"), str(images), "--json", "-"], answers)
    told = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    failed = sum(bool(each["error"]) for each in told)
    expected = len(range(1, count, DAMAGED_EVERY))
    yield (
        "infer",
        {"images": len(told), "failed": failed, "as_expected": (len(told), failed, code) == (count, expected, 2)}
        | judged(looks),
    )
    out = folder / "bench.json"
    models = [
        str(folder / name) for name in ("m.onnx", "n.onnx")
    ]  # one alone has enough queries before its time is over
    seconds = str(minutes * 60 / len(models))
    looks, code = watched(["bench", *models, "--seconds", seconds, "--json", str(out)], answers)
    arms = json.loads(out.read_text(encoding="utf-8"))["arms"] if out.is_file() else []
    queries = sum(len(block) for arm in arms for block in arm["samples_ns"])
    yield (
        "bench",
        {"queries_kept": queries, "as_expected": code in (0, 4)} | judged(looks, own_mib=queries * 8 / 2**20),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(measured(Path(folder), options.images, options.minutes))
    for name, run in runs.items():
        print(
            f"{name}: {run['seconds']} s, at most {run['largest_mib']} MiB and {run['most_handles']} handles, grown by "
            f"{run['grown']} ({run['meant_to_grow_mib']} MiB of samples): {'flat' if run['flat'] else 'NOT FLAT'}"
        )
    write_json(options.out, {"schema": SCHEMA, "environment": read_environment().to_json(), "runs": runs})
    return 0 if all(run["flat"] and run["as_expected"] for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
