"""`msn-deploy calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import INT8, DataOrFeeds, Json, LeaveOut, MaxDrop, Method, MinSqnr, State, Tune, new_file
from msn_deploy.core.errors import size_text
from msn_deploy.core.model_info import DEFAULT_PERCENTILE, DEFAULT_SAMPLES
from msn_deploy.engine.runner import parse_state

if TYPE_CHECKING:
    from msn_deploy.bench.stats import Ratio
    from msn_deploy.pipeline.calibrate import PrecisionReport
    from msn_deploy.pipeline.tune import Tuning

_CACHE = "Scales of other images"
EXAMPLES = """
msn-deploy calibrate runs/vgg7_msn.onnx
msn-deploy calibrate net.onnx --data photos --max-drop 0.5pp
msn-deploy calibrate net.onnx --runtime onnxruntime --tune latency
msn-deploy calibrate net.onnx --data photos --precision fp8
"""


def command(
    onnx: Annotated[Path, typer.Argument(help="FP32 ONNX file from `export`.")],
    data: DataOrFeeds = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="TOML file, or name of one: digits, mnist, fashion-mnist, image-folder.", metavar="FILE|NAME"
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="What layers compute in; FP8 is for GPUs from Ada (SM89) on.", metavar="int8|fp8")
    ] = "int8",
    method: Method = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            help="Percentile for `--method percentile`.", show_default=str(DEFAULT_PERCENTILE), rich_help_panel=INT8
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images or samples to calibrate on.",
            show_default=str(DEFAULT_SAMPLES),
            metavar="N",
            rich_help_panel=INT8,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Seed for drawing samples at random.",
            show_default="evenly spread",
            rich_help_panel=INT8,
        ),
    ] = None,
    state: State = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    leave_out: LeaveOut = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Reuse cached scales.", rich_help_panel=_CACHE)
    ] = True,
    sufficiency: Annotated[
        bool,
        typer.Option("--sufficiency", help="Also report how scales change with fewer images.", rich_help_panel=_CACHE),
    ] = False,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="tensorrt|onnxruntime",
            help="What runs the file: engines, or ONNX Runtime on a CPU (what is left out stays in FP32 there).",
        ),
    ] = "tensorrt",
    tune: Tune = None,
    table: Annotated[
        str | None,
        typer.Option(
            help="Also write NAME.cache for TensorRT 8 to 10 and the FP32 file: trt-8.6, trt-10.3.", metavar="trt-X.Y"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_file, help="File to write.", show_default="NAME.PRECISION.onnx"),
    ] = None,
    json: Json = None,
) -> None:
    """Quantise an ONNX file to INT8 or FP8 (explicit Q/DQ) on real data: training images, or arrays of any network."""
    from msn_deploy.core.recipes import load_calibration_recipe
    from msn_deploy.pipeline.budget import parse_drop, parse_sqnr
    from msn_deploy.pipeline.calibrate import calibrate

    flags = {"data": data, "method": method, "percentile": percentile, "samples": samples, "seed": seed}
    chosen: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if recipe is not None:
        named = load_calibration_recipe(recipe)
        chosen = {key: getattr(named, key) for key in flags} | chosen
    with output.progress_bar() as progress:
        report = calibrate(
            onnx,
            out,
            precision=precision,
            **chosen,
            state=dict(map(parse_state, state or ())),
            max_drop=None if max_drop is None else parse_drop(max_drop),
            min_sqnr=None if min_sqnr is None else parse_sqnr(min_sqnr),
            leave_out=leave_out or (),
            use_cache=cache,
            sufficiency=sufficiency,
            table=table,
            runtime=runtime,
            tune=tune,
            progress=progress,
        )
    for_engines = report.runtime == "tensorrt"
    then = ("build-engine", report.path, "--precision", precision) if for_engines else ("bench", onnx, report.path)
    if output.emit(report, json, made_from=[report.path], then=then):
        return
    output.say(f"{report.path}: {size_text(report.bytes)}, {report.bytes / report.bytes_fp32:.2f} of FP32")
    best_of = f", the best of {len(report.sqnr_db_by_method)} methods" if report.sqnr_db_by_method else ""
    output.say(f"  {report.scales} activation scales ({report.method}{best_of}) from {report.samples} samples")
    show_fidelity(report)
    show_verdict(report)
    if report.cache:
        output.say(f"  {report.cache}")
    if report.table is not None:
        output.say(f"  {report.table}: the same scales for the FP32 file, `--int8 --calib` of {table}")
    if report.drift:
        output.say(f"  scales against those of all {report.samples} images:")
        output.show_table(
            [
                [
                    str(point.images),
                    f"{point.median:.1%}",
                    f"{point.worst:.1%}",
                    f"{point.worst_low:.1%} to {point.worst_high:.1%}",
                ]
                for point in report.drift
            ],
            head=["images", "median drift", "worst tensor", "over draws"],
            right=(0, 1, 2, 3),
        )


def show_fidelity(report: PrecisionReport) -> None:
    """Say how near each output is to FP32 on the samples."""
    if report.parity is None:
        return
    same = report.parity.same_class
    if same is not None:
        output.say(f"  same class as FP32 on {same:.2%} of {report.parity.samples}")
    for each in report.parity.outputs:
        alike = f"SQNR {each.sqnr_db:.1f} dB, cosine {each.cosine:.6f}, max difference {each.worst:.3g}"
        output.say(f"  {each.name}: {alike if each.floats else f'{each.equal:.2%} equal'}")
    if not report.parity.passed and report.precision == "int8" and report.verdict is None:
        output.say(
            "  this is far from FP32: `--max-drop` or `--min-sqnr` leaves the fewest layers out that it takes, and "
            "`--method` chooses other ranges"
        )


def show_verdict(report: PrecisionReport) -> None:
    """Say which layers are not INT8, and what the budget came to."""
    layers = ", ".join(report.left_out[:4]) + (", ..." if len(report.left_out) > 4 else "")
    other = "FP32" if report.runtime == "onnxruntime" else "FP16"
    from msn_deploy.pipeline.quantisable import equalized_text
    from msn_deploy.tasks.task import metric_text

    verdict = report.verdict
    if verdict is not None:
        mixed = f"verdict {verdict.kind}{f' ({layers} in {other})' if layers else ''}"
        if (found := verdict.metric) is not None:
            int8, fp32 = (metric_text(value, found.unit) for value in (found.int8, found.fp32))
            output.say(f"  {mixed}: {found.name} {int8}, FP32 {fp32}")
            scale, unit = (100, "points") if found.unit == "share" else (1, found.unit or "of it")
            around = ""
            if found.interval is not None:
                low, high = found.interval
                around = f" (95 %: {scale * low:+.2f} to {scale * high:+.2f})"
            output.say(
                f"  worse by {scale * found.drop:.2f} {unit}{around} on {verdict.samples:,} test images; "
                f"allowed {scale * found.allowed:.2f}"
            )
        else:
            output.say(
                f"  {mixed}: SQNR {verdict.sqnr_db:.1f} dB of the worst output on {verdict.samples:,} samples; "
                f"asked for {verdict.min_sqnr_db:g} dB"
            )
        for each in verdict.ranking[:4]:
            output.say(f"  {each.layer}: {each.sqnr_db:.1f} dB with INT8 in this layer alone")
    elif layers:
        output.say(f"  left out of {report.precision.upper()}, in {other}: {layers}")
    for name, count in report.equalized.items():
        output.say(f"  {equalized_text(name, count)}")
    for name in report.dead:
        output.say(f"  {name} is 0 on all samples: it has the range 1, and zero stays exact")
    for name in report.transposed:
        output.say(
            f"  {name} is a ConvTranspose: TensorRT-RTX 1.7.1 runs it in FP32; `--leave-out {name}` makes it FP16"
        )
    for name, why in (report.in_fp16 or {}).items():
        output.say(f"  {name} stays in FP16: {why}")
    for name, why in (report.in_fp32 or {}).items():
        output.say(f"  {name} stays in FP32: {why}")
    if report.tuning is not None:
        _show_tuning(report.tuning)


def _show_tuning(tuning: Tuning) -> None:
    """Show what a precision costs in each layer, and how long the network takes without; and say what was let out."""
    name = tuning.precision.upper()
    told = any(each.sqnr_db is not None for each in tuning.layers)
    output.say(
        f"  timed on {tuning.timed_by}: the network without {name} in one layer, as a share of what it took before"
    )
    sqnr = f"; SQNR: what {name} in this layer alone leaves of the outputs" if told else ""
    output.say(f"  (below 1: faster without){sqnr}")
    rows = [
        [
            each.layer,
            each.precision.upper(),
            "-" if each.sqnr_db is None else f"{each.sqnr_db:.1f}",
            *(("-", "") if each.time is None else _interval(each.time)),
        ]
        for each in tuning.layers
    ]
    head = ["layer", "precision", "SQNR, dB", f"time without {name}", "95 %"]
    shown = [at for at in range(len(head)) if told or at != 2]
    output.show_table(
        [[row[at] for at in shown] for row in rows], head=[head[at] for at in shown], right=(2, 3) if told else (2,)
    )
    names = ", ".join(tuning.slow)
    if tuning.together is None:
        output.say(f"  {name} makes the network slower in none of them")
        return
    ratio, interval = _interval(tuning.together)
    took = f"{ratio} of the time ({interval})"
    if tuning.let_out:
        output.say(f"  let out: {names}; the network takes {took}")
    else:
        why = "not surely less" if tuning.together.verdict != "FASTER" else "but too little accuracy is left"
        output.say(f"  slower in {name}: {names}; not let out, for without all of them the network takes {took}, {why}")


def _interval(found: Ratio) -> tuple[str, str]:
    return f"{found.ratio:.3f}", f"{found.low:.3f} to {found.high:.3f}"
