"""How long-running stages report progress, without knowing who listens, and a bar that listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from msn_deploy.core.errors import tamed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars


class Progress(Protocol):
    """Called as work advances; `done` and `total` share a unit that the stage chooses."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


def silent(done: float, total: float, note: str = "") -> None:
    """Ignore progress: the default of every stage."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws a bar with the time that is left, on a terminal's stderr or in a notebook.

    Enter it before torch is imported: that takes seconds, in which the bar says so.

    Examples:
        >>> import msn_deploy
        >>> with msn_deploy.progress_bar() as progress:
        ...     progress(1, 4, "a quarter")
    """
    with bars_on(plain_console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=None)

        def update(done: float, total: float, note: str = "") -> None:
            bars.update(task, completed=done, total=total, description=tamed(note))

        yield update


def bars_on(console: Console, **options: bool) -> Bars:
    """Return a bar with its share, the time that is left and a description, to be drawn on a console."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    description = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(24), TaskProgressColumn(), TimeRemainingColumn(), description)
    return Progress(*columns, console=console, **options)  # type: ignore[arg-type]


def plain_console(*, stderr: bool = False) -> Console:
    """Return what draws on stdout or stderr; brackets and colons in text are that, and not markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
