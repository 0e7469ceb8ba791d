"""`msn-deploy infer`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json, Plugins, Threads, Trust, new_folder
from msn_deploy.core.errors import InputError

if TYPE_CHECKING:
    from msn_deploy.pipeline.flow import Meter

EXAMPLES = """
msn-deploy infer runs/vgg7_msn.onnx photo.jpg
msn-deploy infer net.engine photos --save drawn
msn-deploy infer net.engine camera:0 --display
"""


def command(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES", help="Image files, folders, videos, camera:0, argus:0, rtsp://HOST/PATH."),
    ],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the answers on the images, into this folder.")
    ] = None,
    display: Annotated[
        bool, typer.Option("--display", help="Show the frames of videos in a window; q ends it.")
    ] = False,
    threads: Threads = None,
    trust: Trust = False,
    plugins: Plugins = None,
    json: Json = None,
) -> None:
    """Say what a network makes of images, each as soon as it is known: labels, boxes, masks, values or arrays.

    `--json -` prints each answer as one line of JSON, `--json PATH` writes a list of them. Ctrl-C ends a camera.
    """
    from msn_deploy.data.video import Window, video_source
    from msn_deploy.pipeline.flow import Meter
    from msn_deploy.pipeline.infer import infer

    videos = [each for each in images if video_source(each) is not None]
    if display and not videos:
        raise InputError("--display shows videos and cameras, and there is none.\nLeave it out, or use `--save DIR`.")
    count, unread, kept, meter = 0, [], [], Meter()
    folder = None if save is None else new_folder(save)
    window = Window("msn-deploy infer") if display else None
    answers = infer(
        model, images, save=folder, draw=display, threads=threads, trust=trust, plugins=plugins or (), meter=meter
    )
    try:
        for told in answers:
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
            if window is not None and told.drawn is not None and not window.show(told.drawn):
                break
    except KeyboardInterrupt:
        if not videos:
            raise
        # How one stops a camera; the answers until now are complete.
    finally:
        answers.close()
        if window is not None:
            window.close()
    if meter.items:
        output.note(rate_text(meter))
    if kept:
        output.emit(kept, json, made_from=[model])
    if unread:
        raise InputError(f"{len(unread)} of {count} images failed, the first: {unread[0].error}")


def rate_text(meter: Meter) -> str:
    """Say how fast frames came out, and which stage the others waited for."""
    shares = meter.shares()
    slowest = max(shares, key=lambda name: shares[name])
    busy = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
        f"{meter.items} frames in {meter.seconds:.1f} s: {meter.rate:.4g} per second; the bottleneck is {slowest} "
        f"(busy: {busy})"
    )
