"""`msn-deploy COMMAND ...`: find the command, load only its file, and turn every error into a message and exit code.

The command table is all that `msn-deploy --help` needs, so it answers before typer, numpy or anything else is loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from msn_deploy import __version__

COMMANDS = {
    "demo": "the whole chain on bundled real data, a few minutes on two CPU cores",
    "train": "train a recipe: RECIPE is a file or a built-in name such as vgg7_msn",
    "study": "train a recipe with several norms and compare what happens inside",
    "import-checkpoint": "turn a checkpoint of the MSN paper's authors into one of ours",
    "export": "fold a checkpoint or a network of your own and write one checked ONNX file",
    "calibrate": "quantise an ONNX file to INT8 on real images",
    "build-engine": "build a TensorRT engine in FP32, FP16 or INT8",
    "eval": "measure the accuracy of a checkpoint, ONNX file or engine",
    "bench": "measure latency, side by side, against a baseline",
    "suite": "train, export and measure all networks of a benchmark suite, resumably",
    "infer": "classify images",
    "verify": "check every file of a run folder, and what each was made from",
    "bundle": "pack a run for a Jetson without a network: models, wheels, scripts",
    "targets": "list the devices that engines are built for",
    "doctor": "check this machine: packages, TensorRT, driver, memory",
}
_EVERYWHERE = """Anywhere on the line:
  --quiet         no progress, no warnings; results and errors only
  --debug         show the traceback of an error (also MSN_DEPLOY_DEBUG=1)
  --version       show the version and exit
  -h, --help      show this text, or the options of a command

Exit codes: 0 fine, 1 a gate failed (parity, accuracy, integrity), 2 usage or bad input,
            3 a missing package or device, 4 an invalid measurement, 130 interrupted
"""
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = _take(args, "--debug") or bool(os.environ.get("MSN_DEPLOY_DEBUG"))
    quiet = _take(args, "--quiet")
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"msn-deploy {__version__}\n")
        return 0
    try:
        return _run(args, quiet=quiet, debug=debug)
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def help_text() -> str:
    """Return what `msn-deploy --help` prints."""
    lines = [f"  {name:<19}{about}" for name, about in COMMANDS.items()]
    usage = (
        "Usage: msn-deploy COMMAND [OPTIONS] ...\n\nTrain, fold, quantise, build and measure small CNNs for a Jetson.\n"
    )
    return "\n".join([usage, "Commands, in the order of the pipeline:", *lines, "", _EVERYWHERE])


def _take(args: list[str], flag: str) -> bool:
    """Remove a flag from the arguments (before a bare `--`) and tell whether it was there."""
    end = args.index("--") if "--" in args else len(args)
    found = flag in args[:end]
    args[:end] = [arg for arg in args[:end] if arg != flag]
    return found


def _run(args: list[str], *, quiet: bool, debug: bool) -> int:
    from msn_deploy.core.errors import InputError, MsnDeployError

    try:
        name = args[0]
        if name not in COMMANDS:
            from msn_deploy.core.errors import did_you_mean

            raise InputError(f"there is no command {name!r}{did_you_mean(name, tuple(COMMANDS))}")
        return _call(name, args[1:], quiet=quiet)
    except MsnDeployError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        return _fail(
            str(interrupt) or "interrupted; finished files are whole, unfinished ones were not written.", _INTERRUPTED
        )


def _call(name: str, args: list[str], *, quiet: bool) -> int:
    import typer

    from msn_deploy.cli import output
    from msn_deploy.core.errors import InputError

    module = importlib.import_module(f"msn_deploy.cli.{name.replace('-', '_')}")
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command(help=module.command.__doc__)(module.command)
    output.start(quiet=quiet)
    command = typer.main.get_command(app)
    try:
        # Not command.main(), which swallows Ctrl-C and broken pipes, and the messages that they carry here.
        with command.make_context(f"msn-deploy {name}", args) as context:
            output.record(context.params)
            result = command.invoke(context)
    except typer.Exit as done:  # --help
        return done.exit_code
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        raise InputError(f"{message}{_given(error)}\n`msn-deploy {name} --help` shows the options.") from error
    return result if isinstance(result, int) else 0


def _given(error: Exception) -> str:
    """Return what was typed for an option of the wrong kind: pydantic, behind typer, knows it, typer leaves it out."""
    errors = getattr(error.__cause__, "errors", None)
    return f", not {errors()[0]['input']!r}." if callable(errors) else ""


def _fail(message: str, exit_code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"msn-deploy: {message}\n")
    return exit_code


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())
