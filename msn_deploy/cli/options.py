"""Options that several commands share, declared once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.core.artifacts import owner_of, sidecar_path
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import DEFAULT_METHOD, FP8_METHOD, INPUT_TYPES, TASKS, InputOption, TaskName
from msn_deploy.core.opening import read_input
from msn_deploy.core.reader import decoded, parse_json

INT8 = "INT8 and FP8"  # the group of options that place it
MINIMUM_SECONDS = 0.5  # ten rounds of two blocks of 25 ms: fewer give no interval


def new_file(path: Path | None) -> Path | None:
    """Fail early if the output path cannot be written. Raises InputError."""
    if path is None or str(path) == "-":
        return path
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; a file is needed.\nGive the name of a file in it.")
    _require_folder(path.parent, shown=path)
    return path


def new_folder(path: Path) -> Path:
    """Refuse, before the work, a folder that cannot be made or written to. Raises InputError."""
    _require_folder(path, shown=path)
    return path


def _require_folder(folder: Path, *, shown: Path) -> None:
    # os.path answers False where Path raises: for what may not be looked at, and for names that are too long.
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.exists(each))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        why = "may not be written to" if os.path.isdir(nearest) else "is not a folder"
        raise InputError(f"{shown} cannot be written: {nearest} {why}.\nChoose another place.")


def new_text(path: Path | None) -> Path | None:
    """Refuse also to replace what is not a result: a model, or the sidecar of one. Raises InputError."""
    new_file(path)
    if path is None or not os.path.isfile(path):
        return path
    if path.suffix not in (".json", ".html", ".htm"):
        raise InputError(
            f"{path} already exists and is not a JSON or HTML file; it would be overwritten.\nChoose another."
        )
    for described in (owner_of(path, plan=False), owner_of(path, plan=True)):
        if described.is_file() and sidecar_path(described) == path:
            raise InputError(f"{path} is the sidecar of {described.name}; it would be overwritten.\nChoose another.")
    return path


Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Known name or folder of images.",
        show_default="the known name that the model was trained on",
        metavar="DATA",
    ),
]
DataOrFeeds = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Known name or folder of images; for any other network arrays: .npz (one per input), .npy, a folder.",
        show_default="the known name that the model was trained on",
        metavar="DATA",
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="PATH", callback=new_text, help="Write the result to this file as JSON; - for stdout."
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute.", metavar="auto|cpu|cuda")]
AtMost = Annotated[
    int | None, typer.Option("--samples", metavar="N", min=1, help="Use at most N images.", show_default="all")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the recipe, such as train.ema=0.99; repeatable."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.", show_default="all cores")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load engines built elsewhere: they are native code; adds them to your list.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        metavar="NAME=MIN:OPT:MAX",
        help="Sizes of an input that leaves more than its batch open; repeatable.",
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugins", metavar="LIB.so", help="Library with operators that TensorRT lacks; repeatable."),
]
Out = Annotated[Path, typer.Option("--out", "-o", callback=new_file, help="File to write.")]
Seconds = Annotated[float, typer.Option("--seconds", min=MINIMUM_SECONDS, help="Measured time per model, s.")]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="How ranges are chosen: minmax or percentile; for INT8 also entropy, mse, or auto: the best of the four.",
        show_default=f"{DEFAULT_METHOD}; FP8: {FP8_METHOD}",
        metavar="NAME",
        rich_help_panel=INT8,
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", min=1, help="Images to calibrate on.", metavar="N", rich_help_panel=INT8)
]

MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="0.5pp|2%|0.3dB",
        help="What INT8 may cost of the task's metric; the fewest layers it takes stay in FP16.",
        rich_help_panel=INT8,
    ),
]
State = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="OUT=IN",
        help="An output that becomes an input of the next sample; repeatable.",
    ),
]
MinSqnr = Annotated[
    str | None,
    typer.Option(
        "--min-sqnr",
        metavar="30dB",
        help="What each output keeps against FP32; the fewest layers stay in FP16.",
        rich_help_panel=INT8,
    ),
]
Tune = Annotated[
    str | None,
    typer.Option(
        "--tune",
        metavar="latency",
        help="Also leave out the layers that make the network slower, as timed on this machine.",
    ),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option("--leave-out", metavar="LAYER", help="A layer that stays in FP16; repeatable.", rich_help_panel=INT8),
]


def parse_shape(text: str) -> tuple[int, ...]:
    """Turn "1,3,32,32" or "1x3x32x32" into numbers. Raises InputError."""
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"--input-shape {text!r} is not a list of sizes such as 1,3,32,32.")
    return shape


def parse_input(text: str) -> InputOption:
    """Turn "left=1,3,H=320,W:uint8" into an input: a name among the sizes stays open. Raises InputError."""
    name, _, rest = text.partition("=")
    sizes, _, dtype = rest.partition(":")
    if re.fullmatch(r"\d+(x\d+)+", sizes):
        sizes = sizes.replace("x", ",")
    found = [re.fullmatch(r"(?:([A-Za-z_]\w*)(?:=(\d+))?|(\d+))", part.strip()) for part in sizes.split(",")]
    if not name or (sizes and None in found) or any(part and "0" in (part[2], part[3]) for part in found):
        raise InputError(
            f"--input {text!r} is not NAME=SIZES or NAME=SIZES:TYPE.\n"
            "Such as left=1,3,224,224 or frames=1,480,640,3:uint8; x=N,3,32,W=320 keeps N and W open."
        )
    if dtype not in ("", *INPUT_TYPES):
        raise InputError(f"--input {text!r}: the type {dtype!r} is none of {', '.join(INPUT_TYPES)}.")
    numbers = [(int(part[2] or part[3]) if part[2] or part[3] else None, part[1]) for part in found if part]
    return InputOption(name, tuple(numbers), dtype)


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Turn "0.485,0.456,0.406" into numbers. Raises InputError."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{option} {text!r} is not a list of numbers such as 0.485,0.456,0.406.") from None


def parse_task(text: str | None) -> TaskName | None:
    """Turn "detection" into the name of a task. Raises InputError."""
    if text is not None and text not in TASKS:
        raise InputError(f"unknown task {text!r}{did_you_mean(text, TASKS)}")
    return text


def parse_classes(text: str | None) -> tuple[str, ...]:
    """Turn "cat,dog" into names, or read them from a file: one per line, or a JSON list. Raises InputError."""
    if text is None:
        return ()
    if not os.path.isfile(text):
        names = [part.strip() for part in text.split(",")]
        if text.endswith((".txt", ".names", ".json")):
            raise InputError(f"{text} does not exist.\n`--classes` takes names by comma, or a file of them.")
    else:
        raw = read_input(Path(text), "settings")
        if text.endswith(".json"):
            names = parse_json(raw, source=text)
        else:
            names = [line.strip() for line in decoded(raw, source=text).splitlines()]
        names = names[:-1] if names and names[-1] == "" else names
    if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
        raise InputError(f"{text} holds something else than names: one per line, or a JSON list of strings.")
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise InputError(f"--classes names {twice!r} twice.")
    return tuple(names)


def parse_pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Turn ["head=yolov8", ...] into a dict. Raises InputError."""
    pairs = [each.partition("=")[::2] for each in texts or ()]
    for text, (key, value) in zip(texts or (), pairs, strict=True):
        if not key or not value:
            raise InputError(f"--{option} {text!r} is not KEY=VALUE.")
    return dict(pairs)


def parse_batch(text: str | None) -> tuple[int | None, bool]:
    """Turn "8" or "dynamic" into (batch, is it dynamic). Raises InputError."""
    if text is None:
        return None, False
    if text == "dynamic":
        return None, True
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch-size {text!r} is neither a number of images nor `dynamic`.")
    return int(text), False
