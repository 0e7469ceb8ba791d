"""`msn-deploy suite`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import MINIMUM_SECONDS, Json, Threads, new_folder
from msn_deploy.core.errors import InputError, InvalidMeasurement, size_text

if TYPE_CHECKING:
    from msn_deploy.core.suites import Suite
    from msn_deploy.report.suite import SuiteArm, SuiteCase, SuiteIndex

EXAMPLES = """
msn-deploy suite smoke
msn-deploy suite my_suite.toml --plan
"""


def command(
    suite: Annotated[str, typer.Argument(help="TOML file, or a built-in name: smoke, paper, jetson.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results.", show_default="by machine and suite"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=MINIMUM_SECONDS, help="Measured time per model and case, s.", show_default="the suite's"),
    ] = None,
    threads: Threads = None,
    runs: Annotated[
        Path | None, typer.Option(help="Take checkpoints from here, train into it.", show_default="a cache")
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Stop before engines and measuring, to copy --runs to a device.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only list the steps, and what is done already.")] = False,
    json: Json = None,
) -> None:
    """Train, export, quantise and measure all networks of a suite; the same command resumes after an interruption."""
    from msn_deploy.core.suites import load_suite  # pydantic, which --help does not wait for

    chosen = load_suite(suite).override(seconds=seconds, threads=threads)
    if prepare and runs is None:
        raise InputError("--prepare makes files to be copied to a device: say where.\nAdd `--runs DIR`.")
    from msn_deploy.pipeline.suite import default_out, run_suite, write_index
    from msn_deploy.training import keep_freed_memory

    out = new_folder(out or default_out(chosen))
    if plan:
        _show_plan(chosen, out, runs, json)
        return
    keep_freed_memory()
    with output.progress_bar() as progress:
        outcomes = run_suite(chosen, out, runs=runs, prepare=prepare, tell=output.note, progress=progress)
    if prepare:
        output.say(f"{runs}/: ready. On the device: msn-deploy suite {suite} --runs {runs}")
        return
    index = write_index(chosen, outcomes, out)
    if not output.emit(index, json, made_from=[out / "suite.json"], then=("verify", out)):
        _show(index)
        output.say(f"\nEverything is in {out}/; open {out}/report.html")
    invalid = [case for case in index.cases if case.invalid]
    if invalid:
        names = ", ".join(case.case for case in invalid)
        why = invalid[0].invalid.splitlines()[0]
        raise InvalidMeasurement(
            f"{len(invalid)} of {len(index.cases)} cases are invalid: {names}.\n{why}\n"
            "The same command measures them again, and only them."
        )


def _show_plan(suite: Suite, out: Path, runs: Path | None, json: Path | None) -> None:
    from msn_deploy.pipeline.suite import Case, plan_of

    steps = [
        {
            "step": f"measure {each.name}: {', '.join(each.forms)}" if isinstance(each, Case) else each.text,
            "file": str(out / f"{each.name}.json" if isinstance(each, Case) else each.out),
            "done": done,
        }
        for each, done in plan_of(suite, out, runs)
    ]
    if not output.emit(steps, json):
        output.show_table(
            [("done" if each["done"] else "to do", str(each["step"])) for each in steps], head=("state", "step")
        )


def _show(index: SuiteIndex) -> None:
    """Print a table per case, and what it comes to."""
    for case in index.cases:
        rows = [
            (
                arm.name,
                f"{arm.accuracy:.2%}",
                size_text(arm.bytes),
                f"{arm.median_ms:.3f}",
                "1" if arm.name == case.baseline else f"{arm.ratio:.3f}",
                _verdict(case, arm),
            )
            for arm in case.arms
        ]
        output.say(f"\n{case.network}, batch {case.batch}")
        head = ("form", "accuracy", "file", "ms", "ratio", "verdict")
        output.show_table(rows, head=head, right=(1, 2, 3, 4), gap=2)
    from msn_deploy.report.suite import findings

    output.say("")
    for sentence, numbers in findings(index):
        output.say_wrapped(sentence, hanging="")
        output.say_wrapped(numbers, indent="  ")


def _verdict(case: SuiteCase, arm: SuiteArm) -> str:
    if case.invalid:
        return "INVALID"
    return "baseline" if arm.name == case.baseline else arm.verdict
