"""`msn-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.bench_show import live_bench, show
from msn_deploy.cli.options import MINIMUM_SECONDS, Json, Plugins, Threads, Trust, new_file, new_text
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.engine.cuda import parse_wait
from msn_deploy.engine.runner import parse_state
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.pipeline.bench_request import BenchRequest

_LOAD = "Load and profile"
_GATE = "Gate for CI"
_MORE = "What else to measure"
EXAMPLES = """
msn-deploy bench runs/vgg7_bn.onnx runs/vgg7_msn.onnx
msn-deploy bench runs/vgg7_msn.onnx --baseline auto --html report.html
msn-deploy bench net.engine --profile throughput --streams 2 --batch-size 8
msn-deploy bench net.onnx --against before.json --fail-if slower:3%
"""


def _gate_file(path: Path | None) -> Path | None:
    """Fail early: refuse to replace a file that is not a gate's, such as a model. Raises InputError."""
    if path is not None and path.suffix not in (".md", ".xml"):
        raise InputError(f"{path} is written as .md (--markdown) or .xml (--junit).\nGive it that ending.")
    return new_file(path)


def command(
    models: Annotated[list[Path], typer.Argument(help="ONNX files, engines, checkpoints; or an earlier --json.")],
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare with this file; auto: make BN's rows from a RECIPE.", show_default="the first"),
    ] = None,
    provider: Annotated[
        str, typer.Option("--device", help="Where ONNX files run.", metavar="cpu|cuda|tensorrt")
    ] = BenchRequest.provider,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run checkpoints compiled by torch, too.", rich_help_panel=_MORE)
    ] = False,
    runs: Annotated[
        Path | None, typer.Option(help="With --baseline auto: take and keep checkpoints here.", show_default="a cache")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per query.", show_default="the files', or 1")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Known name or folder of images; or .npz or .npy feeds.",
            show_default="the model's own, or random",
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes", metavar="NAME=SHAPE", help="Shape of an input that leaves more than its batch open; repeatable."
        ),
    ] = None,
    threads: Threads = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=MINIMUM_SECONDS, help="Measured time per model, s.", show_default="10; mlperf 600, trtexec-* 3"
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="Timing profile: single-stream, mlperf, throughput, trtexec-10, trtexec-11.",
            metavar="NAME",
            rich_help_panel=_LOAD,
        ),
    ] = BenchRequest.profile,
    streams: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Queries in flight at a time (throughput).",
            show_default="2; trtexec-* 1",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    soak: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Then keep each model under load, as in 30m (throughput): heat, clocks, rate.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Replay each engine from a CUDA graph.", rich_help_panel=_LOAD)
    ] = False,
    wait: Annotated[
        str | None,
        typer.Option(
            help="How engines wait for the GPU.",
            show_default="the profile's, spin",
            metavar="spin|sleep",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    mapped: Annotated[
        bool, typer.Option("--mapped", help="Run engines on mapped buffers (zero-copy), too.", rich_help_panel=_LOAD)
    ] = False,
    builds: Annotated[
        int, typer.Option(min=1, help="Load each model N times.", rich_help_panel=_MORE)
    ] = BenchRequest.builds,
    energy: Annotated[
        bool, typer.Option("--energy", help="Measure energy per query too (Jetson).", rich_help_panel=_MORE)
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time each model's layers afterwards.", rich_help_panel=_MORE)
    ] = False,
    trust: Trust = False,
    plugins: Plugins = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", metavar="OUT=IN", help="Feed an output back as an input in the next query; repeatable."
        ),
    ] = None,
    json: Json = None,
    html: Annotated[Path | None, typer.Option("--html", callback=new_text, help="Write the report page.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare every model with this earlier --json.", rich_help_panel=_GATE)
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            help="Exit 1 if slower than --against, or else than the baseline.",
            show_default="slower:3%",
            metavar="slower:X%",
            rich_help_panel=_GATE,
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(callback=_gate_file, help="Write the gate as Markdown.", rich_help_panel=_GATE)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(callback=_gate_file, help="Write the gate as JUnit XML.", rich_help_panel=_GATE)
    ] = None,
) -> None:
    """Measure latency side by side, in interleaved blocks, against a baseline.

    --profile throughput measures images per second with several queries in flight instead.
    A result instead of models is compared with that of --against, and nothing is measured.
    """
    from msn_deploy.bench import to_json
    from msn_deploy.bench.gate import judge_baseline, judge_regression, parse_limit
    from msn_deploy.bench.profile import options_for
    from msn_deploy.bench.soak import parse_duration
    from msn_deploy.pipeline.bench import bench, read_result, write_gate, write_html, write_json

    if runs is not None and str(baseline) != "auto":
        raise InputError("--runs is where `--baseline auto RECIPE` finds checkpoints.\nLeave it out.")
    names: dict[Path, str] = {}
    accuracies: dict[Path, float] = {}
    if str(baseline) == "auto":
        for given, option in ((cuda_graph, "--cuda-graph"), (wait, "--wait"), (mapped, "--mapped")):
            if given:
                raise InputError(f"{option} is for engines, and `--baseline auto` makes ONNX files.\nLeave one out.")
        names, accuracies, own_data = _rows_of_recipe(models, runs, batch=batch or 1, threads=threads)
        data = data or own_data
        models, baseline = list(names), None
    request = BenchRequest(
        models=models,
        baseline=baseline,
        provider=provider,
        compiled=compiled,
        batch=batch,
        data=data,
        shapes=tuple(map(parse_shapes, shapes or ())),
        threads=threads,
        profile=profile,
        streams=streams,
        soak_s=None if soak is None else parse_duration(soak),
        cuda_graph=cuda_graph,
        wait=parse_wait(wait),
        mapped=mapped,
        builds=builds,
        energy=energy,
        layers=layers,
        trust=trust,
        plugins=tuple(plugins or ()),
        state=dict(map(parse_state, state or ())),
        options=options_for(profile, seconds),
        names=names,
        accuracies=accuracies,
    )
    measured = request.files
    gated = against is not None or fail_if is not None
    if not gated and (markdown or junit):
        raise InputError("--markdown and --junit write a gate.\nAdd `--against base.json` or `--fail-if slower:3%`.")
    if fail_if is not None and against is None and len(measured) < 2:
        raise InputError("--fail-if needs something to compare the only model with.\nAdd `--against` or `--baseline`.")
    limit = parse_limit(fail_if or "slower:3%")
    base = None if against is None else read_result(against)
    if [path.suffix for path in measured] == [".json"]:
        if base is None:
            raise InputError(
                f"{measured[0]} is a result, not a model.\nSay what to compare it with: `--against base.json`."
            )
        result = read_result(measured[0])
    else:
        with live_bench(shown=str(json) != "-") as (progress, watch):
            result = bench(request, progress=progress, watch=watch)
    if html is not None:
        write_html(result, html, measured, title="msn-deploy bench")
    if json is not None and str(json) == "-":
        output.say_json(to_json(result))
    else:
        if json is not None:
            write_json(result, json, measured)
            output.follow("bench", *measured, "--against", json)
        show(result)
    gate = None
    if base is not None:
        gate = judge_regression(result, base, limit=limit, source=str(against))
    elif gated:
        gate = judge_baseline(result, limit=limit)
    if gate is not None:
        write_gate(result, gate, measured, md=markdown, xml=junit)
    if not result.validity.valid:
        raise InvalidMeasurement(result.validity.message)
    if gate is not None:
        gate.check()
        for each in gate.findings:
            output.note(f"gate: {each.name} {each.state} against {gate.against}")


def _rows_of_recipe(
    models: list[Path], runs: Path | None, *, batch: int, threads: int | None
) -> tuple[dict[Path, str], dict[Path, float], str | None]:
    """Train and export what is missing; return names and accuracies of the three rows, the baseline first, and data."""
    from msn_deploy.core.recipes import load_recipe
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.forms import make_all, three_rows
    from msn_deploy.training import keep_freed_memory

    if len(models) != 1:
        raise InputError(f"--baseline auto takes one RECIPE, not {len(models)} models.\nName a file, or vgg7_msn.")
    forms = three_rows(load_recipe(str(models[0])), batch)
    keep_freed_memory()
    with output.progress_bar() as progress:
        paths = make_all(list(forms.values()), runs, threads=threads, tell=output.note, progress=progress)
    data = next(iter(forms.values())).data
    accuracies = {path: evaluate(path, data=data, threads=threads).value for path in paths}
    return dict(zip(paths, forms, strict=True)), accuracies, data
