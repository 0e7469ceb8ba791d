"""What `bench` shows on a terminal while it measures: a bar with an ETA, and how the arms stand.

Drawn only when it is called, which `measure` does between blocks: no thread draws while a block is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msn_deploy.cli import output
from msn_deploy.cli.bench_text import shortened
from msn_deploy.core.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from msn_deploy.bench import Samples
    from msn_deploy.bench.live import Standing, Watch

_EVERY_S = 0.5
_SHARE = 20  # a drawing that takes long is made rarer, so that it takes at most 1/20 of the time
_NAME = 30


@contextmanager
def live_bench(
    *, shown: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[Progress, Watch | None]]:
    """Yield what `measure` calls with its progress and with its samples; nothing is shown off a terminal or if quiet.

    shown: False shows nothing anyway. console: to draw on, stderr's if None. clock: in seconds.
    """
    on_terminal = sys.stderr.isatty() if console is None else console.is_terminal
    if not shown or output.is_quiet() or not on_terminal:
        yield silent, None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from msn_deploy.bench.live import standings

    columns = (BarColumn(24), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    bars = Bars(*columns, console=console, auto_refresh=False)
    task = bars.add_task("", total=None)
    table: list[Table] = []
    due, looking_s = clock(), 0.0

    def watch(taken: Callable[[], Samples]) -> None:
        """Look at the samples if it is time; `progress`, which is called right after, draws."""
        nonlocal looking_s
        start = clock()
        if start >= due:
            table[:] = [_table(standings(taken()))]
            looking_s = clock() - start

    def progress(done: float, total: float, note: str = "") -> None:
        nonlocal due, looking_s
        bars.update(task, completed=done, total=total, description=note)
        start = clock()
        if start >= due:
            live.update(Group(bars.get_renderable(), *table), refresh=True)
            due = start + max(_EVERY_S, _SHARE * (looking_s + clock() - start))
            looking_s = 0.0

    with Live(console=console or Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield progress, watch


def _table(rows: list[Standing]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for at, title in enumerate(("model", "median ms", "ratio", "blocks", "dropped")):
        table.add_column(title, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            shortened(row.name, _NAME),
            "-" if row.median_ms is None else f"{row.median_ms:.3f}",
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            str(row.blocks),
            str(row.dirty),
        )
    return table
