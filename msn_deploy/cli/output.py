"""What a person or a script sees: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import Parent, parent_of, publish
from msn_deploy.core.errors import size_text
from msn_deploy.core.home import home_folder
from msn_deploy.core.progress import Progress, silent

_VERSIONS = ("numpy", "onnxruntime", "pillow", "torch")
_MANY = 6  # files written to one folder: more are counted, not listed


@dataclass(kw_only=True)
class _State:
    """What is known of the command that runs."""

    quiet: bool = False
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
    _state = _State(quiet=quiet)
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
    handler.setFormatter(logging.Formatter("msn-deploy: %(levelname)s: %(message)s"))
    handler.addFilter(look)
    logger = logging.getLogger("msn_deploy")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


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


def record(options: Mapping[str, Any]) -> None:
    """Keep the options of the command that runs, defaults too, for the sidecar of its result."""
    _state.options = json.loads(json.dumps(options, default=str))


def say(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell on stderr what is going on, unless `--quiet`."""
    if not _state.quiet:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


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
    text = json.dumps(value, indent=2, default=_plain)
    if str(json_to) == "-":
        say(text)
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


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it knows: dataclasses into their fields, paths and others into text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def show_table(rows: Sequence[Sequence[str]], *, head: Sequence[str], right: Sequence[int] = (), gap: int = 3) -> None:
    """Print rows under a head, at most 80 columns wide off a terminal; columns in `right` are aligned to the right.

    gap: between columns, 2 or 3.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", collapse_padding=gap == 2)
    for at, title in enumerate(head):
        # Names stay whole where they can: they are what one searches for, and pastes into the next command.
        table.add_column(title, justify="right" if at in right else "left", no_wrap=at == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws a bar with an ETA on a terminal, and nothing elsewhere or with `--quiet`."""
    if _state.quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(24), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def update(done: float, total: float, note: str = "") -> None:
            bars.update(task, completed=done, total=total, description=note)

        yield update
