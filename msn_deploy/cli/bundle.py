"""`msn-deploy bundle`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, Shapes, new_file
from msn_deploy.core.errors import InputError, size_text

EXAMPLES = """
msn-deploy bundle runs --target orin-nano
msn-deploy bundle runs --target orin-nx --with cpp --to user@jetson
"""


def command(
    run: Annotated[Path, typer.Argument(help="Output folder of a run, with ONNX files.")],
    target: Annotated[
        str, typer.Option(help="Jetson that it is for; `msn-deploy targets` lists them.", metavar="NAME")
    ],
    wheels: Annotated[
        Path | None, typer.Option(help="Folder of wheels to take.", show_default="downloaded by pip")
    ] = None,
    no_wheels: Annotated[bool, typer.Option("--no-wheels", help="Pack none: scripts and trtexec only.")] = False,
    python: Annotated[
        list[str] | None,
        typer.Option(help="Python of the device; repeatable.", show_default="3.10 and 3.12", metavar="X.Y"),
    ] = None,
    shapes: Shapes = None,
    extras: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="cpp|deepstream|triton",
            help="Pack too: a C++ project that runs the engines, configurations of DeepStream's nvinfer, a model "
            "repository for Triton; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_file, help="File to write.", show_default="RUN-TARGET.tar"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            help="Push it over your ssh, install, build, evaluate and measure there, and fetch the report.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --to: what `eval` takes there, a name or a folder.", metavar="DATA")
    ] = None,
    replicates: Annotated[int, typer.Option(min=1, help="With --to: engines of each model.")] = 1,
    report_to: Annotated[
        Path | None,
        typer.Option("--report", help="With --to: folder for the report.", show_default="RUN-TARGET-report"),
    ] = None,
    json: Json = None,
) -> None:
    """Pack a run into one tarball that a Jetson installs, builds, checks and measures without a network.

    With --to all of that is done over ssh. Type the same command again after a cut connection: it resumes there.
    """
    from msn_deploy.engine import BuildOptions, find_target
    from msn_deploy.engine.tensors import parse_shapes
    from msn_deploy.pipeline.bundle import bundle, find_extras
    from msn_deploy.pipeline.deploy import check, deploy
    from msn_deploy.pipeline.wheels import PYTHONS

    given = {"--data": data is not None, "--replicates": replicates > 1, "--report": report_to is not None}
    if to is None and any(given.values()):
        raise InputError(f"`{next(name for name, there in given.items() if there)}` goes with `--to USER@HOST` only.")
    found = find_target(target)
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", run.absolute().name)[:40].strip(".-") or "run"
    path = out or Path(f"{plain}-{found.name}.tar")
    if path.suffix != ".tar":
        raise InputError(f"{path} has to end in .tar; the wheels in it are compressed already.")
    with output.progress_bar() as progress:
        report = bundle(
            run,
            path,
            target=found,
            wheels=wheels,
            with_wheels=not no_wheels,
            pythons=tuple(python or PYTHONS),
            options=BuildOptions(shapes=tuple(map(parse_shapes, shapes or ()))),
            extras=find_extras(extras or ()),
            keep=to is not None,
            progress=progress,
        )
    if to is not None:
        where = report_to or path.with_name(f"{path.stem}-report")
        with output.progress_bar() as progress:
            done = deploy(
                report,
                to,
                report=where,
                data=data,
                replicates=replicates,
                tell=lambda line: output.note(f"  {line}"),
                progress=progress,
            )
        if not output.emit(done, json, made_from=[report.path]):
            for step in done.steps:
                output.say(f"  {step.name:<8} {step.state}{f' (exit code {step.code})' if step.code else ''}")
            if done.report is not None:
                output.say(f"{done.report}: the report of {to}")
        check(done)
        return
    if output.emit(report, json, made_from=[report.path]):
        return
    output.say(
        f"{report.path}: {size_text(report.bytes)}, {len(report.models)} models, {len(report.wheels)} wheels, for "
        f"{found.title}"
    )
    if report.left_out:
        output.say(f"  left out        {', '.join(report.left_out)}: {found.title} has no such precision")
    output.say("  on the device   the first line checks the tarball before it is unpacked, which no file in it can do")
    output.say(f"    echo '{report.sha256}  {path.name}' | sha256sum -c &&")
    output.say(f"    tar xf ./{path.name} && cd ./{path.stem} && ./verify {report.digest} &&")
    output.say("    ./install.sh && ./build.sh && ./bench.sh")
