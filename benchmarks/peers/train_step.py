"""How long does one training step take, and what does it keep for the backward, with each normalisation?

    python benchmarks/peers/train_step.py [--device cpu] [--out FILE] [--only vgg7,contiguous,float32] [--seconds S]
    python benchmarks/peers/train_step.py --device cuda --out FILE

The second line is the one for a machine with a GPU: it needs torch 2.11 or later and no download, and ends within
`--budget` seconds (540). The cases that matter most come first; each is written as soon as it is measured, and what
was left out is named. All arms share one process there, because CUDA's memory is torch's own.

On a CPU every arm lives in a process of its own, as a training does, so that no arm allocates from the memory that
another left behind; the processes take turns, in blocks of randomised mirrored order, and only one works at a time.
`malloc kept`: glibc gives freed memory back to the kernel and takes it again page by page, which costs 10 to 40 ms per
step here and hits this or that arm by the luck of its sizes; so all arms run with that switched off, as
`msn-deploy train` does. `--malloc default` leaves it on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.machine.environment import read_environment

SCHEMA = "msn-deploy-train-step/1"
BATCH = {
    "cpu": {"vgg7": 64, "resnet18": 32, "densenet_bc": 16, "mobilenet_v2": 32, "unet": 16},
    "cuda": {"vgg7": 256, "resnet18": 256, "densenet_bc": 128, "mobilenet_v2": 256, "unet": 64},
}
LAYOUTS = ("contiguous", "channels_last")
DTYPES = ("float32", "bfloat16")
FORMS = ("eager", "compiled", "graph")
PLAN = {
    "cpu": [
        *(("eager", dtype, layout) for dtype in DTYPES for layout in LAYOUTS),
        *(("compiled", "float32", layout) for layout in LAYOUTS),
    ],
    "cuda": [
        ("eager", "float32", "contiguous"),
        ("eager", "float32", "channels_last"),
        ("eager", "bfloat16", "channels_last"),
        ("compiled", "float32", "contiguous"),
        ("graph", "float32", "contiguous"),
        ("compiled", "bfloat16", "channels_last"),
        ("graph", "bfloat16", "channels_last"),
    ],
}
"""Form, dtype and layout, in order of worth."""
FEW = ["bn", "none", "msn"]
"""The arms of compiled steps and of a GPU, where each takes minutes to compile or a share of the budget."""


def _work(connection: Connection, case: dict[str, object], device: str, threads: int, malloc: str) -> None:
    """Answer "facts" and "step" until told to stop."""
    if malloc == "kept":
        from msn_deploy.training import keep_freed_memory

        keep_freed_memory()
    import torch
    from train_step_arms import Trainer

    torch.set_num_threads(threads)
    trainer = Trainer(device=device, **case)  # type: ignore[arg-type]
    while (asked := connection.recv()) != "stop":
        connection.send(_answer(trainer, asked))


def _answer(trainer: Any, asked: str) -> object:
    return trainer.facts() if asked == "facts" else trainer.step()


@contextmanager
def workers(cases: list[dict[str, object]], options: argparse.Namespace) -> Iterator[list[Callable[[str], object]]]:
    """Start a process per arm and yield, for each, a function that asks it for something and waits for the answer."""
    if options.device == "cuda":
        from train_step_arms import Trainer

        yield [partial(_answer, Trainer(device="cuda", **case)) for case in cases]  # type: ignore[arg-type]
        return
    context = multiprocessing.get_context("spawn")
    running = []
    try:
        for case in cases:
            ours, theirs = context.Pipe()
            arguments = (theirs, case, options.device, options.threads, options.malloc)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            running.append((process, ours))

        def asker(connection: Connection) -> Callable[[str], object]:
            def ask(what: str) -> object:
                connection.send(what)
                return connection.recv()

            return ask

        yield [asker(connection) for _, connection in running]
    finally:
        for process, connection in running:
            if process.is_alive():
                connection.send("stop")
            process.join(timeout=20)


def one_case(case: dict[str, object], arms: list[str], options: argparse.Namespace) -> dict[str, object]:
    """Measure all arms of one network, batch, layout and dtype; return the ratios and the raw samples."""
    with workers([{**case, "arm": arm} for arm in arms], options) as asks:
        facts = {arm: ask("facts") for arm, ask in zip(arms, asks, strict=True)}
        samples = measure(
            [Arm(name=arm, run=lambda ask=ask: ask("step")) for arm, ask in zip(arms, asks, strict=True)],
            options=MeasureOptions(seconds=options.seconds, warmup_seconds=1, warmup_queries=3, block_ms=1),
        )
    blocks = {arm.name: block_medians(arm.blocks) for arm in samples.arms}
    rows = {}
    for arm in samples.arms:
        row: dict[str, object] = {**facts[arm.name], "median_ms": round(float(_median(blocks[arm.name])) / 1e6, 3)}
        for baseline in ("bn", "none", "authors"):
            if baseline in blocks and baseline != arm.name:
                ratio = ratio_to_baseline(blocks[arm.name], blocks[baseline])
                row[f"to_{baseline}"] = [round(ratio.ratio, 4), round(ratio.low, 4), round(ratio.high, 4)]
        rows[arm.name] = row
    raw = {arm.name: [round(block[0] / 1e6, 3) for block in arm.blocks] for arm in samples.arms}
    return {**case, "rows": rows, "steps_ms": raw}


def _median(values: object) -> float:
    import numpy as np

    return float(np.median(values))  # type: ignore[call-overload]


def cases(device: str, only: set[str]) -> Iterator[dict[str, object]]:
    """Yield the cases of a device, the most important first."""
    for form, dtype, layout in PLAN[device]:
        for net, batch in BATCH[device].items():
            if only <= {net, dtype, layout, form, str(batch)}:
                yield {"net": net, "batch": batch, "layout": layout, "dtype": dtype, "form": form}


def show(result: dict[str, object]) -> None:
    """Print the rows of one case, at most 80 columns."""
    sys.stderr.write(
        f"\n{result['net']}, batch {result['batch']}, {result['layout']}, {result['dtype']}, {result['form']}\n"
    )
    sys.stderr.write(f"  {'arm':<14}{'ms':>9}{'saved MiB':>11}  {'to BN':<22}{'to none':<20}\n")
    for name, row in result["rows"].items():  # type: ignore[attr-defined]
        shown = ["{:.3f} ({:.3f} to {:.3f})".format(*row[key]) if key in row else "1" for key in ("to_bn", "to_none")]
        sys.stderr.write(f"  {name:<14}{row['median_ms']:>9.1f}{row['saved_mib']:>11.1f}  {shown[0]:<22} {shown[1]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, help="measured time per arm and case, s; default 12, on a GPU 1.5")
    parser.add_argument("--budget", type=float, help="start no case that would not end within s; on a GPU 540")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--malloc", choices=("kept", "default"), default="kept")
    parser.add_argument("--only", default="", help="cases with all of these words: net, layout, dtype, batch")
    parser.add_argument("--arms", default="", help="some of the arms, by comma; all by default")
    parser.add_argument("--out", type=Path, help="write the JSON here instead of printing it")
    options = parser.parse_args()
    import torch
    from train_step_arms import ARMS

    on_gpu = options.device == "cuda"
    arms = options.arms.split(",") if options.arms else [*FEW, "msn+fused"] if on_gpu else list(ARMS)
    options.seconds = options.seconds or (1.5 if on_gpu else 12)
    budget = options.budget or (540 if on_gpu else float("inf"))
    began, longest = time.monotonic(), {form: 0.0 for form in FORMS}
    only = {word for word in options.only.split(",") if word}
    result = {
        "schema": SCHEMA,
        "what": "forward + backward + SGD update; saved: memory kept for the backward",
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "malloc": options.malloc,
        "torch": torch.__version__,
        "environment": read_environment().to_json(),
        "left_out": [],
        "cases": [],
    }
    for case in cases(options.device, only):
        start = time.monotonic()
        form = str(case["form"])
        if start - began + longest[form] > budget:
            result["left_out"].append(case)
            continue
        try:
            few = form == "compiled" and not on_gpu
            measured = one_case(case, [arm for arm in arms if arm in FEW] if few else arms, options)
        except (RuntimeError, ImportError) as cause:  # such as no memory, no Triton: the other cases still count
            result["left_out"].append({**case, "cause": (str(cause).splitlines() or [type(cause).__name__])[0]})
            continue
        finally:
            longest[form] = max(longest[form], time.monotonic() - start)
        show(measured)
        result["cases"].append(measured)
        if options.out is not None:
            options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if options.out is None:
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
