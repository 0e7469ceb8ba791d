"""How is a loaded model kept busy with several queries, and what runs each of them?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.bench.load import Lane, Load, Query, QueuedLoad, ThreadedLoad
from msn_deploy.core.errors import InputError
from msn_deploy.engine import Runner
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.engine.trt import TrtRunner
from msn_deploy.machine.state import usable_cores
from msn_deploy.machine.usage import Gauge
from msn_deploy.model.feeds import Feeds


@dataclass(frozen=True, slots=True)
class _EngineLane:
    """A context and a stream of an engine."""

    runner: TrtRunner
    feeds: Iterator[Feeds]

    def submit(self) -> None:
        self.runner.submit(next(self.feeds))

    def collect(self) -> object:
        return self.runner.collect()


@dataclass(frozen=True, slots=True)
class _ResidentLane:
    """The same without copies: the inputs lie on the GPU, and what is made stays there."""

    runner: TrtRunner

    def submit(self) -> None:
        self.runner.submit_again()

    def collect(self) -> object:
        return self.runner.finish()


def threads_under_load(asked: int | None, streams: int) -> int:
    """Return the threads of one query: those asked for, else the cores shared out among the queries in flight."""
    return asked or max(1, len(usable_cores()) // streams)


def load_of(runner: Runner, feeds: Sequence[Feeds], *, streams: int, copies: bool, root: Path) -> Load:
    """Return what keeps `streams` queries of a loaded model in flight, each on the next of the feeds.

    A session of ONNX Runtime is called by as many threads; an engine gets as many contexts and streams, which one
    thread serves. Raises InputError for a model of another kind, and as TrtRunner does.
    """
    if isinstance(runner, TrtRunner):
        runners = [runner, *(runner.another() for _ in range(streams - 1))]
        turns = [itertools.cycle(_from(feeds, at)) for at in range(streams)]
        for each, turn in zip(runners, turns, strict=True):
            each.run(next(turn))
        lanes: list[Lane] = [
            _EngineLane(each, turn) if copies else _ResidentLane(each)
            for each, turn in zip(runners, turns, strict=True)
        ]
        return QueuedLoad(lanes, gauge=Gauge(root, device_mib=runner.memory_mib))
    if isinstance(runner, OrtRunner):
        return ThreadedLoad([bound_query(runner, _from(feeds, at)) for at in range(streams)], gauge=Gauge(root))
    raise InputError(
        f"{runner.name} is measured one query at a time; several are for ONNX files and engines.\n"
        "Export it first, or use `--profile single-stream`."
    )


def bound_query(runner: OrtRunner, feeds: Sequence[Feeds]) -> Query:
    """Return a call that runs the next of the feeds, which are checked here and not in every query.

    Lines of Python beside a network are slow, since its weights have driven them out of the caches, and a loop that is
    written by hand has none.
    """
    turn = itertools.cycle([runner.bound(each) for each in feeds])
    return lambda: next(turn)()


def _from(feeds: Sequence[Feeds], at: int) -> list[Feeds]:
    """Return the feeds from another one on: lanes take them in turns, each by an iterator of its own."""
    return [*feeds[at % len(feeds) :], *feeds[: at % len(feeds)]]
