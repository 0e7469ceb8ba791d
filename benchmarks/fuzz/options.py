"""Command lines with options that are wrong, doubled, huge or out of place; the options are those of the commands."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from functools import cache
from random import Random

import typer

from fuzz.values import TEXTS, words
from msn_deploy.cli.app import COMMANDS

_NEVER = ("--to", "--trust", "--wheels", "--help")
"""They connect to a device, load native code, or start pip."""


@cache
def options_of(command: str) -> list[tuple[str, bool]]:
    """Return the options of a command, each with whether a value follows."""
    if command not in COMMANDS:
        return []
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"msn_deploy.cli.{command.replace('-', '_')}").command)
    found = [(each, not getattr(p, "is_flag", False)) for p in typer.main.get_command(app).params for each in p.opts]
    return [each for each in found if each[0].startswith("-") and each[0] not in _NEVER]


# Command lines that work, and options to be put to them; what only makes a command work longer gets no large number.
_LINES = (
    "train in/r.toml --epochs 1 --samples 16 --out out", "export in/c.safetensors --no-simplify --out out/x.onnx",
    "export in/m.onnx --no-simplify --out out/x.onnx",
    "export in/net.py:net --input-shape 1,1,8,8 --no-simplify --out out/x.onnx",
    "calibrate in/m.onnx --data digits --samples 16 --method minmax --out out/q.onnx",
    "build-engine in/m.onnx --target orin-nano-8gb --precision fp32 --out out/e.engine",
    "eval in/m.onnx --samples 16 --threads 1",
    "eval in/c.safetensors --samples 16", "infer in/m.onnx in/digit.png", "bench in/m.onnx --seconds 0.5 --threads 1",
    "bench in/bench.json --against in/bench.json", "verify in",
    "bundle in --target orin-nano-8gb --no-wheels --out out/b.tar",
    "suite in/s.toml --plan --out out", "targets", "doctor", "import-checkpoint in/w.pt --out out/x.safetensors",
    "eval in/e.engine",
    "study in/r.toml --norms msn --epochs 1 --samples 16 --out out", "demo --out out/NAME/x", "--help", "--version",
)  # fmt: skip
_AMOUNTS = ("epochs", "seconds", "builds", "replicates", "samples", "profile")
_KEYS = ("epochs", "batch_size", "learning_rate", "width", "input_shape", "name", "net", "norm", "data", "seed",
"ema", "augment", "optimizer", "gan", "task", "classifier")  # fmt: skip


def with_odd_options(rng: Random, *, leave_out: Callable[[str], bool] | None = None) -> list[str]:
    """Return a command line that works, with one or two words changed or put to it."""
    args = shlex.split(rng.choice([line for line in _LINES if leave_out is None or not leave_out(line)]))
    command = args[0]
    if command == "demo":  # it works for minutes
        return [
            "demo",
            f"--{rng.choice(('epochs', 'seconds'))}",
            rng.choice(("0", "-1", "x", "", "nan", "in/m.onnx")),
        ]
    known = options_of(command)
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(6):
            case 0 if len(args) > 1:
                args[rng.randrange(1, len(args))] = words(rng)
            case 1:
                args.insert(rng.randrange(1, len(args) + 1), words(rng))
            case 2 if command == "train":
                value = rng.choice((*TEXTS, "1", "[" * 5000, "9" * 400, "-1", "1.5")).replace("\x00", "")
                args += ["--set", f"{rng.choice(('', 'train.', 'gan.'))}{rng.choice(_KEYS)}={value}"]
            case _ if known:
                option, takes = rng.choice(known)
                args.append(option)
                if takes:
                    few = option.strip("-") in _AMOUNTS
                    args.append(rng.choice(("0", "-1", "", "x", "nan", "1", "2")) if few else words(rng))
    return [arg for arg in args if "\x00" not in arg]
