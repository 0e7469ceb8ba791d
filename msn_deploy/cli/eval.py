"""`msn-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import AtMost, Data, Json, Plugins, Threads, Trust

if TYPE_CHECKING:
    from msn_deploy.pipeline.judge import Judgement


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    data: Data = None,
    samples: AtMost = None,
    judge: Annotated[
        Path | None, typer.Option(help="Checkpoint of a classifier that judges what a generator makes.")
    ] = None,
    threads: Threads = None,
    trust: Trust = False,
    plugins: Plugins = None,
    json: Json = None,
) -> None:
    """Measure accuracy on a test split; of a generator, with `--judge`, how real its images look."""
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.judge import judge as judge_generator

    if judge is not None:
        with output.progress_bar() as progress:
            judged = judge_generator(model, judge, data=data, samples=samples, threads=threads, progress=progress)
        if not output.emit(judged, json, made_from=[model, judge, *judged.images]):
            _show_judged(judged)
        return
    with output.progress_bar() as progress:
        result = evaluate(
            model,
            data=data,
            samples=samples,
            threads=threads,
            trust=trust,
            plugins=plugins or (),
            progress=progress,
        )
    if output.emit(result, json, made_from=[model, result.images]):
        return
    worst = min(result.per_class, key=lambda name: result.per_class[name])
    output.say(f"{result.model}: accuracy {result.accuracy:.2%} on {result.samples} test images of {result.data}")
    output.say(f"  worst class {worst}: {result.per_class[worst]:.2%}")


def _show_judged(result: Judgement) -> None:
    rows = [
        (
            name,
            *(f"{number:.3f}" for number in (seen.confidence, seen.image_entropy, seen.class_entropy, seen.score, fid)),
        )
        for name, seen, fid in (("real", result.real, result.fid_real), ("generated", result.generated, result.fid))
    ]
    head = ("images", "confidence", "entropy of an image", "of the classes", "score", "FID to real")
    output.show_table(rows, head=head, right=range(1, 6))
    accuracy = "" if result.judge_accuracy is None else f" (test accuracy {result.judge_accuracy:.2%})"
    output.say(
        f"{result.samples} images each of {result.data}, judged by {result.judge}{accuracy};\n"
        "on its features, so not comparable with an Inception FID or score."
    )
