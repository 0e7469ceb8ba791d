"""`msn-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Seconds, Threads, Trust, new_text

if TYPE_CHECKING:
    from msn_deploy.bench import BenchResult


def command(
    models: Annotated[list[Path], typer.Argument(help="ONNX files or engines.")],
    baseline: Annotated[Path | None, typer.Option(help="Compare with this file.", show_default="the first")] = None,
    provider: Annotated[str, typer.Option(help="Of ONNX files: cpu, cuda or tensorrt.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Images per query.")] = 1,
    threads: Threads = None,
    seconds: Seconds = 10.0,
    trust: Trust = False,
    json: Annotated[
        Path | None, typer.Option("--json", callback=new_text, help="Write the result with raw samples; - for stdout.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", callback=new_text, help="Write the report page.")] = None,
) -> None:
    """Measure latency side by side, in interleaved blocks, against a baseline."""
    from msn_deploy.bench import MeasureOptions, to_json
    from msn_deploy.pipeline import bench
    from msn_deploy.pipeline.bench import write_html, write_json

    with output.progress_bar() as progress:
        result = bench(
            models,
            baseline=baseline,
            provider=provider,
            batch=batch,
            threads=threads,
            trust=trust,
            options=MeasureOptions(seconds=seconds),
            progress=progress,
        )
    measured = list(dict.fromkeys([*([baseline] if baseline is not None else []), *models]))
    if html is not None:
        write_html(result, html, measured, title="msn-deploy bench")
    if json is not None and str(json) == "-":
        output.say(to_json(result))
        return
    if json is not None:
        write_json(result, json, measured)
    show(result)


def show(result: BenchResult) -> None:
    """Print one row per model."""
    rows = [
        (
            arm.name,
            f"{arm.median_ms:.3f}",
            "-" if arm.p90_ms is None else f"{arm.p90_ms:.3f}",
            "-" if arm.p99_ms is None else f"{arm.p99_ms:.3f}",
            "1" if arm.name == result.baseline else f"{arm.ratio:.3f}",
            "" if arm.name == result.baseline else f"{arm.ratio_interval[0]:.3f} to {arm.ratio_interval[1]:.3f}",
            "baseline" if arm.name == result.baseline else arm.verdict,
        )
        for arm in result.arms
    ]
    head = ("model", "median ms", "p90", "p99", "ratio", "95 % interval", "verdict")
    output.show_table(rows, head=head, right=(1, 2, 3, 4))
    graphs: dict[str, list[str]] = {}
    for arm in result.arms:
        graphs.setdefault(arm.facts.get("graph") or arm.name, []).append(arm.name)
    for names in graphs.values():
        if names[1:]:
            output.say(f"same graph: {', '.join(names)}; a difference between them is noise, not the network")
    profile = result.profile
    output.say(
        f"{profile.provider}, batch {profile.batch}, {profile.threads} threads, input: {profile.input}; "
        "ratio below 1 is faster"
    )
