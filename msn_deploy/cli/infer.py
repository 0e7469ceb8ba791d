"""`msn-deploy infer`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, Plugins, Threads, Trust, new_folder
from msn_deploy.core.errors import InputError


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, video files, camera:0.")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the answers on the images, into this folder.")
    ] = None,
    threads: Threads = None,
    trust: Trust = False,
    plugins: Plugins = None,
    json: Json = None,
) -> None:
    """Say what a network makes of images, each as soon as it is known: labels, boxes, masks, values or arrays.

    `--json -` prints each answer as one line of JSON, `--json PATH` writes a list of them.
    """
    from msn_deploy.pipeline.infer import infer

    count, unread, kept = 0, [], []
    folder = None if save is None else new_folder(save)
    for told in infer(model, images, save=folder, threads=threads, trust=trust, plugins=plugins or ()):
        count += 1
        if told.answer is None:
            unread.append(told)
        if json is not None and str(json) != "-":
            kept.append(told.to_json())
        if str(json) == "-":
            output.say_json(json_text.dumps(told.to_json()))
        elif told.answer is not None:
            output.say(f"{told.image}  {told.answer.text()}  {told.latency_ms:.2f} ms")
        else:
            output.note(f"msn-deploy: WARNING: {told.error}")
    if kept:
        output.emit(kept, json, made_from=[model])
    if unread:
        raise InputError(f"{len(unread)} of {count} images failed, the first: {unread[0].error}")
