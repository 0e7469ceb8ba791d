"""`msn-deploy COMMAND ...`: find the command, load only its file, and turn every error into a message and exit code.

The command table is all that `msn-deploy --help` needs, so it answers before typer, numpy or anything else is loaded.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from msn_deploy import __version__

_GROUPS = {"demo": "The chain", "bench": "Measure and look", "bundle": "Devices"}  # each begins with this command
COMMANDS = {
    "demo": "the whole chain on bundled real data or yours, a few minutes on two cores",
    "train": "train a recipe: RECIPE is a file or a built-in name such as vgg7_msn",
    "recipes": "list the built-in recipes, or print one to start your own with",
    "datasets": "list the data sets that are known by name, and which are here",
    "import-checkpoint": "convert a checkpoint published by the MSN paper's authors",
    "export": "fold a checkpoint or a network of your own and write one checked ONNX file",
    "calibrate": "quantise an ONNX file to INT8 on real images",
    "build-engine": "build a TensorRT engine in FP32, FP16 or INT8",
    "eval": "measure the accuracy of a checkpoint, ONNX file or engine",
    "bench": "measure latency, side by side, against a baseline",
    "diff": "compare two files tensor by tensor: where they begin to differ, and how much",
    "study": "train a recipe with several norms and compare what happens inside",
    "suite": "train, export and measure all networks of a benchmark suite, resumably",
    "infer": "show what a model says of images, videos or arrays",
    "info": "say what a model file is and what it was made from",
    "verify": "check every file of a run folder, and what each was made from",
    "bundle": "pack a run for a Jetson without a network: models, wheels, scripts",
    "targets": "list the devices that engines are built for",
    "doctor": "check this machine: packages, TensorRT, driver, memory",
}
_EVERYWHERE = """`msn-deploy help COMMAND` shows its options, `msn-deploy version` what is installed,
`msn-deploy --install-completion` makes the Tab key complete commands and options.

Anywhere on the line:
  -q, --quiet     no progress, no warnings; results and errors only
  -v, --verbose   also what is logged on the way
  --debug         show the traceback of an error (also MSN_DEPLOY_DEBUG=1)
  --version       show the version and exit
  -h, --help      show this text, or the options of a command

Every command takes `--json PATH` to write its result, and `--json -` to print it.

Exit codes: 0 fine, 1 a gate failed (parity, accuracy, integrity), 2 usage or bad input,
            3 a missing package or device, 4 an invalid measurement,
            5 a fault of msn-deploy itself, 130 interrupted
"""
_OUR_FAULT = 5
_MOST = 2**32 - 1  # of any number on the command line: the largest seed
_INTERRUPTED = 130
_OBJECTS_PER_LOOK = 200_000  # made before Python looks for cycles among the youngest
# What the machine refuses anyone: no space, no rights, a broken disk, too many open files, too little memory.
_REFUSALS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "ENOMEM")
)
# What torch says where Python would raise MemoryError: on the CPU, on the GPU.
_NO_MEMORY = "can't allocate memory|[Oo]ut of memory|not enough memory"
# Names that options had before, by command: still accepted, no longer shown.
_OLD_SPELLINGS = {
    "train": {"--limit-train": "--samples"},
    "study": {"--limit-train": "--samples"},
    "export": {"--batch": "--batch-size"},
    "build-engine": {"--batch": "--batch-size"},
    "bench": {"--batch": "--batch-size", "--provider": "--device"},
}
# What typer, by pydantic, says of values that do not do.
_PLAINER = {
    r"Input should be a valid integer, unable to parse string as an integer": "a whole number is needed",
    r"Input should be a valid number, unable to parse string as a number": "a number is needed",
    r"Input should be greater than or equal to (\S+?)(?=,|\.?$)": r"at least \1 is needed",
    r"Input should be less than or equal to (\S+?)(?=,|\.?$)": r"at most \1 is possible",
}
_PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxsim",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "typer",
    "numpy",
    "pillow",
)
_COMPLETE = "_MSN_DEPLOY_COMPLETE"  # the shells' question, by typer's rule for the name of a program
_JSON_WAS_A_FLAG = ("doctor", "infer", "targets", "verify")  # what follows it there may be an argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    _mend_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = _take(args, "--debug") or bool(os.environ.get("MSN_DEPLOY_DEBUG"))
    quiet, verbose = _take(args, "-q", "--quiet"), _take(args, "-v", "--verbose")
    return _run(args, quiet=quiet, verbose=verbose, debug=debug)


def _mend_streams() -> None:
    """Open standard streams that are closed, and let them write names that are not text in their encoding.

    The next file that is opened would otherwise become stdout, and what a library prints would go into it.
    A stdout that was closed cannot be written to; a stderr that was closed goes nowhere.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if place != number:
                os.dup2(place, number)
                os.close(place)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def help_text() -> str:
    """Return what `msn-deploy --help` prints."""
    lines = []
    for name, about in COMMANDS.items():
        lines += [f"\n{group}:"] if (group := _GROUPS.get(name)) else []
        lines.append(f"  {name:<19}{about}")
    usage = (
        "Usage: msn-deploy COMMAND [OPTIONS] ...\n\nTrain, fold, quantise, build and measure small CNNs for a Jetson.\n"
    )
    return "\n".join([usage.rstrip("\n"), *lines, "", _EVERYWHERE])


def _take(args: list[str], *flags: str) -> bool:
    """Remove a flag from the arguments (before a bare `--`) and tell whether it was there."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg not in flags]
    args[:end] = kept
    return len(kept) < end


def _run(args: list[str], *, quiet: bool, verbose: bool, debug: bool) -> int:
    from msn_deploy.core.errors import InputError, did_you_mean, message_of, shown, tamed

    try:
        name = args[0] if args else "--help"
        if name == "help" and args[1:2] and not args[1].startswith("-"):
            args = name, *_ = [args[1], "--help"]
        if _COMPLETE in os.environ or name in ("--install-completion", "--show-completion"):
            code = _complete(args)
        elif name in ("-h", "--help", "help"):
            sys.stdout.write(help_text())
            code = 0
        elif name in ("--version", "version"):
            sys.stdout.write(f"msn-deploy {__version__}\n" + (_versions() if name == "version" else ""))
            code = 0
        elif name in COMMANDS:
            code = _call(name, _respelled(name, args[1:]), quiet=quiet, verbose=verbose)
        else:
            raise InputError(f"there is no command {shown(name)}{did_you_mean(name[:100], tuple(COMMANDS))}")
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        _unwritten()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        from msn_deploy.cli.output import write_stderr

        if debug:
            import traceback

            write_stderr(tamed("".join(traceback.format_exception(error))))
        told, code = _told(error)
        if (why := _unwritten()) and isinstance(error, OSError):
            told, code = f"standard output cannot be written: {why}.\nFree space, or send it elsewhere.", 2
        write_stderr(f"msn-deploy: {message_of(told)}\n")
        return code


def _unwritten() -> str:
    """Say why stdout cannot be written to, and let it go nowhere; nothing if it can."""
    try:
        sys.stdout.flush()
    except OSError as cause:
        from msn_deploy.cli.output import discard

        discard(sys.stdout)
        return cause.strerror or type(cause).__name__
    return ""


def _respelled(name: str, args: list[str]) -> list[str]:
    """Return the arguments as they are spelled today: options by their new names, `--json` alone as `--json -`."""
    old = _OLD_SPELLINGS.get(name, {})
    end = args.index("--") if "--" in args else len(args)
    words: list[str] = []
    for arg, following in zip(args[:end], [*args[1:end], "--"], strict=False):
        option, equals, value = arg.partition("=")
        words.append(old.get(option, option) + equals + value)
        is_path = following.endswith(".json") if name in _JSON_WAS_A_FLAG else not following.startswith("-")
        if arg == "--json" and following != "-" and not is_path:
            words.append("-")
    return words + args[end:]


def _versions() -> str:
    """Return a line for Python and each package that the commands use, where it is installed."""
    from msn_deploy.machine.libraries import installed_version

    found = {"python": sys.version.split()[0], **{name: installed_version(name) for name in _PACKAGES}}
    return "".join(f"  {name:<14}{version or 'not installed'}\n" for name, version in found.items())


def _complete(args: Sequence[str]) -> int:
    """Let typer answer the shell, which asks by an environment variable, or set the shell up to ask."""
    import typer

    from msn_deploy.cli.help import add_command

    app = typer.Typer(rich_markup_mode=None)
    for name in COMMANDS:
        add_command(app, name)
    try:
        app(args=list(args), prog_name="msn-deploy")
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def _call(name: str, args: list[str], *, quiet: bool, verbose: bool) -> int:
    import typer

    from msn_deploy.cli import output
    from msn_deploy.cli.help import load_command
    from msn_deploy.core.errors import InputError

    command = load_command(name)
    output.start(quiet=quiet, verbose=verbose)
    try:
        # Not command.main(), which swallows Ctrl-C and broken pipes, and the messages that they carry here.
        with command.make_context(f"msn-deploy {name}", args) as context:
            _require_bounds({each.opts[0]: context.params.get(each.name) for each in command.params})
            output.record(context.params)
            result = command.invoke(context)
    except typer.Exit as done:  # --help
        return done.exit_code
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        for typers, ours in _PLAINER.items():
            message = re.sub(typers, ours, message)
        raise InputError(f"{message}{_given(error)}\n`msn-deploy {name} --help` shows the options.") from error
    output.finish()
    return result if isinstance(result, int) else 0


def _require_bounds(options: Mapping[str, Any]) -> None:
    """Refuse numbers that nothing can be counted or timed in, of any option. Raises InputError."""
    from msn_deploy.core.errors import InputError, shown

    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, int | float) and not -_MOST <= each <= _MOST:  # nan neither
                raise InputError(f"{name} {shown(each)} is too large, or not a number.")


def _given(error: Exception) -> str:
    """Return what was typed for an option of the wrong kind: pydantic, behind typer, knows it, typer leaves it out."""
    errors = getattr(error.__cause__, "errors", None)
    return f", not {errors()[0]['input']!r}." if callable(errors) else ""


def _told(error: BaseException) -> tuple[str, int]:
    """Return what to say of an error, and the exit code: the user's, the machine's, or, where nothing fits, ours."""
    from msn_deploy.core.errors import InputError, MsnDeployError, shorten

    if isinstance(error, MsnDeployError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; finished files are complete, unfinished ones were not written.", _INTERRUPTED
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error))):
        said = shorten(str(error).partition("\n")[0])
        return (
            f"the machine has too little memory for this{f' ({said})' if said else ''}.\n"
            "Close other programs, or choose a smaller batch, smaller images or fewer of them."
        ), InputError.exit_code
    if isinstance(error, OverflowError):
        return f"a number here is too large to compute with ({shorten(error)}).", InputError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: {error.strerror}.\nGive a shorter name.", InputError.exit_code
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return (
            f"{error.filename or 'this machine'}: {error.strerror}.\n"
            "Change that (free space, grant access), then type the same command again."
        ), InputError.exit_code
    import traceback
    from pathlib import Path

    package = Path(__file__).parents[1]
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    file, line = [(file, line) for file, line in frames if package in file.parents][-1]
    what = f"{type(error).__name__} at {file.relative_to(package.parent)}:{line}"
    return (
        f"a fault of msn-deploy itself: {what}: {' '.join(str(error).split())[:200]}; "
        "please report this at the project's issue tracker with the output of `--debug`."
    ), _OUR_FAULT


def run() -> None:
    """Entry point of the console script.

    torch and its exporter make millions of objects that live to the end. Looking for cycles among them every 700
    objects, and once more at the end, takes seconds.
    """
    gc.set_threshold(_OBJECTS_PER_LOOK, 30, 30)
    code = main()
    gc.freeze()
    sys.exit(code)
