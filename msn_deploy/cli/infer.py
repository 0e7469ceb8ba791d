"""`msn-deploy infer`."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, Plugins, Threads, Trust
from msn_deploy.core.errors import InputError


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, video files, camera:0.")],
    threads: Threads = None,
    trust: Trust = False,
    plugins: Plugins = None,
    json: Json = None,
) -> None:
    """Classify images: class, score and latency of each, as soon as it is known.

    `--json -` prints each answer as one line of JSON, `--json PATH` writes a list of them.
    """
    from msn_deploy.pipeline.infer import infer

    count, unread, kept = 0, [], []
    for answer in infer(model, images, threads=threads, trust=trust, plugins=plugins or ()):
        count += 1
        if answer.error:
            unread.append(answer)
        if json is not None and str(json) != "-":
            kept.append(answer)
        if str(json) == "-":
            output.say(json_text.dumps(asdict(answer)))
        elif not answer.error:
            output.say(f"{answer.image}  {answer.label}  {answer.score:.1%}  {answer.latency_ms:.2f} ms")
    if kept:
        output.emit(kept, json, made_from=[model])
    if unread:
        raise InputError(f"{len(unread)} of {count} images failed, the first: {unread[0].error}")
