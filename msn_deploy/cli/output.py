"""What a person or a script sees: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from msn_deploy.core import progress
from msn_deploy.core.artifacts import Parent, parent_of, publish
from msn_deploy.core.errors import InputError, message_of, size_text, tamed
from msn_deploy.core.home import home_folder
from msn_deploy.core.progress import Progress, plain_console, silent
from msn_deploy.core.reader import parse_json
from msn_deploy.core.results import plain

_VERSIONS = ("numpy", "onnxruntime", "pillow", "torch")
_MANY = 6  # files written to one folder: more are counted, not listed
_COLUMNS = 80
# Colours of verdicts, on a terminal that has them and without NO_COLOR; nothing is told by colour alone.
_STYLES = {
    **dict.fromkeys(("ok", "done", "FASTER", "holds"), "green"),
    **dict.fromkeys(("warning", "outdated", "stale", "AMBIGUOUS", "unclear"), "yellow"),
    **dict.fromkeys(("problem", "broken", "SLOWER", "does not hold"), "red"),
}


@dataclass(kw_only=True)
class _State:
    """What is known of the command that runs."""

    quiet: bool = False
    verbose: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """As parsed, defaults too."""
    written: list[Path] = field(default_factory=list)
    following: str = ""
    """The command line to type next."""
    noted: set[str] = field(default_factory=set)
    """What was logged as a note; it is shown once."""
    home: Path = field(default_factory=home_folder)
    """Where caches lie: they are not told of."""


_state = _State(home=Path("/"))


def start(*, quiet: bool, verbose: bool = False) -> None:
    """Set up one command: what the library logs goes to stderr, one line each, from the level that is asked for."""
    global _state
    _state = _State(quiet=quiet, verbose=verbose)
    shown = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING

    def look(record: logging.LogRecord) -> bool:
        if hasattr(record, "written"):
            _state.written.append(record.written)
        if hasattr(record, "note"):
            text = record.getMessage()
            if text not in _state.noted:
                _state.noted.add(text)
                note(text)
            return False
        return record.levelno >= shown

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Tamed("msn-deploy: %(levelname)s: %(message)s"))
    handler.addFilter(look)
    logger = logging.getLogger("msn_deploy")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


class _Tamed(logging.Formatter):
    """Shows what a library logs as errors are shown: names and values in it can be anything."""

    def format(self, record: logging.LogRecord) -> str:
        return message_of(super().format(record))


def finish() -> None:
    """Say on stderr which files were written, caches left out, and what to type next; nothing with `--quiet`."""
    kept = [
        path for path in dict.fromkeys(_state.written) if path.is_file() and _state.home not in path.absolute().parents
    ]
    for folder in dict.fromkeys(path.parent for path in kept):
        files = {path: path.stat().st_size for path in kept if path.parent == folder}
        lines = [f"wrote {path} ({size_text(count)})" for path, count in files.items()]
        if len(lines) > _MANY:
            lines = [f"wrote {folder}/ ({len(lines)} files, {size_text(sum(files.values()))})"]
        note("\n".join(lines))
    if _state.following:
        note(f"next: {_state.following}")


def follow(*words: object) -> None:
    """Keep what to type after this command: the words after `msn-deploy`."""
    _state.following = shlex.join(["msn-deploy", *map(str, words)])


def is_quiet() -> bool:
    """Whether only results are wanted."""
    return _state.quiet


def is_verbose() -> bool:
    """Whether more is wanted than the result."""
    return _state.verbose


def record(options: Mapping[str, Any]) -> None:
    """Keep the options of the command that runs, defaults too, for the sidecar of its result."""
    _state.options = parse_json(json.dumps(options, default=str), source="the command line")


def say(text: str) -> None:
    """Print a line of the result; text out of a file cannot command the terminal. Raises InputError as `_on_stdout`."""
    with _on_stdout():
        sys.stdout.write(tamed(text) + "\n")


def columns() -> int:
    """Return how many columns a line of the result may have: 80, or fewer on a narrower terminal."""
    return min(_COLUMNS, plain_console().width)


def say_wrapped(text: str, *, indent: str = "", hanging: str = "  ") -> None:
    """Print a sentence of the result on as many lines as it takes. indent: of the first. hanging: of the others."""
    options: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    say(textwrap.fill(text, columns(), initial_indent=indent, subsequent_indent=hanging, **options))


@contextmanager
def _on_stdout() -> Iterator[None]:
    """Write to stdout. Raises InputError where that fails: of a long text before the flush, which then has nothing."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as cause:
        raise InputError(
            f"standard output cannot be written: {cause.strerror}.\nFree space, or send it elsewhere."
        ) from cause


def say_json(text: str) -> None:
    """Print JSON text, in which only this character is not written out yet."""
    say(text.replace("\x7f", "\\u007f"))


def note(text: str) -> None:
    """Tell on stderr what is going on, unless `--quiet`; nothing fails if that cannot be written."""
    if not _state.quiet:
        write_stderr(tamed(text) + "\n")


def write_stderr(text: str) -> None:
    """Write to stderr, or nowhere from then on if its disk is full or nobody reads it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let a standard stream that cannot be written to go nowhere: Python would try again at exit, and fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def emit(
    value: Any, json_to: Path | None, *, made_from: Sequence[Path | Parent] = (), then: Sequence[object] = ()
) -> bool:
    """Write a result as JSON to a file or, for "-", to stdout; tell whether stdout is taken (no table then).

    made_from: what the result describes; the sidecar of the file names it. then: what to type next, as for `follow`.
    """
    if then:
        follow(*then)
    if json_to is None:
        return False
    text = json.dumps(value, indent=2, default=plain)
    if str(json_to) == "-":
        say_json(text)
        return True
    parents = [each if isinstance(each, Parent) else parent_of(each, role="subject") for each in made_from]
    publish(
        json_to,
        lambda path: path.write_text(text + "\n", encoding="utf-8"),
        kind="result",
        parents=parents,
        versions=_VERSIONS,
        config=_state.options,
    )
    return False


def show_table(
    rows: Sequence[Sequence[str]],
    *,
    head: Sequence[str],
    right: Sequence[int] = (),
    gap: int = 3,
    spare: Sequence[int] = (),
    least_name: int = 0,
) -> None:
    """Print rows under a head, at most 80 columns wide off a terminal; columns in `right` are aligned to the right.

    gap: between columns, 2 or 3. spare: columns that a narrow terminal does without, the first to go first.
    least_name: characters to which the first column is shortened if it has to be; 0: it stays whole.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    longest = max(len(row[0]) for row in (head, *rows))
    shown, left_out = list(range(len(head))), list(spare)
    while (room := room_for_names(rows, head, gap=gap, shown=shown)) < (least_name or longest) and left_out:
        shown.remove(left_out.pop(0))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", collapse_padding=gap == 2)
    for at in shown:
        # Names stay whole where they can: they are what one searches for, and pastes into the next command.
        whole = at == 0 or at in right
        table.add_column(head[at], justify="right" if at in right else "left", no_wrap=whole, overflow="fold")
    for name, *rest in rows:
        cells = [shortened(name, max(least_name, room)) if least_name else name, *rest]
        table.add_row(*(Text(tamed(cells[at]), style=_STYLES.get(cells[at], "")) for at in shown))
    with _on_stdout():
        console.print(table)


def room_for_names(
    rows: Sequence[Sequence[str]], head: Sequence[str], *, gap: int, shown: Sequence[int] | None = None
) -> int:
    """Return how many characters are left for the first cell of a row. shown: the columns; None: all."""
    others = range(1, len(head)) if shown is None else shown[1:]
    return plain_console().width - sum(max(len(row[at]) for row in (head, *rows)) + gap for at in others)


def shortened(name: str, room: int) -> str:
    """Shorten a name to `room` characters; the middle goes, since names of models differ at their ends."""
    if len(name) <= room:
        return name
    end = (room - 1) // 2
    return f"{name[: room - 1 - end]}\N{HORIZONTAL ELLIPSIS}{name[-end:]}"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws a bar on a terminal, and nothing elsewhere or with `--quiet`."""
    if _state.quiet or not sys.stderr.isatty():
        yield silent
        return
    with progress.progress_bar() as update:
        yield update
