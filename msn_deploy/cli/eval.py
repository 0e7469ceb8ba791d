"""`msn-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import AtMost, Data, Json, Plugins, Threads, Trust

if TYPE_CHECKING:
    from msn_deploy.pipeline.judge import Judgement

EXAMPLES = """
msn-deploy eval runs/vgg7_msn.int8.onnx
msn-deploy eval net.onnx --data photos --json -
"""


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
    """Measure a network by its task's metric on a test split; with `--judge`, how real a generator's images look."""
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.judge import judge as judge_generator
    from msn_deploy.tasks.task import metric_text

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
    shown = metric_text(result.value, result.unit)
    output.say(f"{result.model}: {result.metric} {shown} on {result.samples} test images of {result.data}")
    for name, value in result.metrics.items():
        output.say(f"  {name} {metric_text(value, result.unit_of_metrics)}")
    if result.per_class:
        worst = (min if result.higher_is_better else max)(result.per_class, key=lambda name: result.per_class[name])
        what = "value" if result.task == "regression" else "class"
        output.say(f"  worst {what} {worst}: {metric_text(result.per_class[worst], result.unit)}")


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
