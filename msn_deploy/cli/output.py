"""What a person or a script sees: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import Parent, parent_of, publish
from msn_deploy.core.progress import Progress, silent

_VERSIONS = ("numpy", "onnxruntime", "pillow", "torch")
_quiet = False
_options: dict[str, Any] = {}


def start(*, quiet: bool) -> None:
    """Set up logging for one command: warnings of the library as one line each on stderr, none with `quiet`."""
    global _quiet
    _quiet = quiet
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("msn-deploy: %(levelname)s: %(message)s"))
    logger = logging.getLogger("msn_deploy")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)


def is_quiet() -> bool:
    """Whether only results are wanted."""
    return _quiet


def record(options: Mapping[str, Any]) -> None:
    """Keep the options of the command that runs, defaults too, for the sidecar of its result."""
    global _options
    _options = json.loads(json.dumps(options, default=str))


def say(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell on stderr what is going on, unless `--quiet`."""
    if not _quiet:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def emit(value: Any, json_to: Path | bool | None, *, made_from: Sequence[Path | Parent] = ()) -> bool:
    """Write a result as JSON to a file or, for True or "-", to stdout; tell whether stdout is taken (no table then).

    made_from: what the result speaks of. The file has a sidecar that names it, as all that lies in a run folder.
    """
    if json_to is None or json_to is False:
        return False
    text = json.dumps(plain(value), indent=2, default=str)
    if json_to is True or str(json_to) == "-":
        say(text)
        return True
    parents = [each if isinstance(each, Parent) else parent_of(each, role="subject") for each in made_from]
    publish(
        json_to,
        lambda path: path.write_text(text + "\n", encoding="utf-8"),
        kind="result",
        parents=parents,
        versions=_VERSIONS,
        config=_options,
    )
    return False


def plain(value: Any) -> Any:
    """Turn dataclasses, and lists of them, into plain values."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


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


def size(count: int | None) -> str:
    """Return bytes as KiB or MiB."""
    if count is None:
        return "-"
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws a bar with an ETA on a terminal, and nothing elsewhere or with `--quiet`."""
    if _quiet or not sys.stderr.isatty():
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
