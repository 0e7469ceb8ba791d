"""`msn-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Data, Json, Threads


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint or ONNX file.")],
    data: Data = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use at most so many test images.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Checkpoint of a classifier that judges what a generator makes.")
    ] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Measure accuracy on a test split; of a generator, with `--judge`, how real its images look."""
    from msn_deploy.pipeline import evaluate

    if judge is not None:
        _judged(model, judge, data, samples, json)
        return
    with output.progress_bar() as progress:
        result = evaluate(model, data=data, samples=samples, threads=threads, progress=progress)
    if output.emit(result, json):
        return
    worst = min(result.per_class, key=lambda name: result.per_class[name])
    output.say(f"{result.model}: accuracy {result.accuracy:.2%} on {result.samples} test images of {result.data}")
    output.say(f"  worst class {worst}: {result.per_class[worst]:.2%}")


def _judged(model: Path, judge: Path, data: str | None, samples: int | None, json: Path | None) -> None:
    from msn_deploy.pipeline.judge import judge as judged

    result = judged(model, judge, data=data, samples=samples)
    if output.emit(result, json):
        return
    rows = [
        (
            name,
            *(f"{number:.3f}" for number in (seen.confidence, seen.image_entropy, seen.class_entropy, seen.score, fid)),
        )
        for name, seen, fid in (("real", result.real, result.fid_real), ("generated", result.generated, result.fid))
    ]
    head = ("images", "confidence", "entropy of an image", "of the classes", "score", "FID to real")
    output.show_table(rows, head=head, right=range(1, 6))
    output.say(
        f"{result.samples} images each of {result.data}, judged by {result.judge} (test accuracy "
        f"{result.judge_accuracy:.2%});\non its features, so not comparable with an Inception FID or score."
    )
