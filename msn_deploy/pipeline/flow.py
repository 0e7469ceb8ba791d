"""Stages that work at the same time, each on another item: items stay in order, and few wait between two stages.

One stage runs in the thread of whoever asks for the results, since an engine belongs to the thread that loaded it. What
a stage raises reaches the asker after the results of the items before; when the asker stops, so does every stage.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

DEPTH = 4  # items that wait between two stages
_END = object()
_PATIENCE_S = 2.0  # for a thread that waits for a camera


@dataclass(frozen=True, slots=True)
class Stage:
    """What is done with each item."""

    name: str
    work: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Failed:
    cause: BaseException


class Meter:
    """How many items came out, how fast, and how busy each stage was."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.busy_s: dict[str, float] = {}
        self.items = 0
        self._before_s = 0.0  # of sources that are over
        self._began = self._ended = clock()

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do something in the name of a stage."""
        start = self._clock()
        try:
            return work()
        finally:
            self.busy_s[name] = self.busy_s.get(name, 0.0) + self._clock() - start

    def begin(self) -> None:
        """Start the time, once more for each source."""
        self._before_s = self.seconds
        self._began = self._ended = self._clock()

    def count(self) -> None:
        """Note that an item has come out."""
        self.items += 1
        self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """From the start until the last item came out, over all sources."""
        return self._before_s + self._ended - self._began

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds if self.seconds > 0 else 0.0

    def shares(self) -> dict[str, float]:
        """Return the share of the time that each stage was busy; the largest is the bottleneck."""
        return {name: busy / self.seconds if self.seconds > 0 else 0.0 for name, busy in self.busy_s.items()}


@dataclass(slots=True)
class _Channel:
    """A bounded queue that either side can close."""

    depth: int
    items: deque[Any] = field(default_factory=deque)
    closed: bool = False
    changed: Condition = field(default_factory=Condition)

    def put(self, item: Any) -> bool:
        """Wait for room, and add an item; False if nobody wants it any more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.depth)
            if not self.closed:
                self.items.append(item)
                self.changed.notify_all()
            return not self.closed

    def get(self) -> Any:
        """Wait for an item; _END if none will come."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.items)
            item = self.items.popleft() if self.items else _END
            self.changed.notify_all()
            return item

    def close(self) -> None:
        """Take no more items; those that are there can still be had."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def abandon(self) -> None:
        """Close it, and drop what is there."""
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


def flow(
    source: Iterator[Any],
    stages: Sequence[Stage],
    *,
    here: int,
    meter: Meter,
    name: str = "decode",
    depth: int = DEPTH,
) -> Iterator[Any]:
    """Yield what the stages make of each item of a source, in order.

    Args:
        source: Gives the items; it is closed in the thread that it runs in.
        stages: What is done with them, each in a thread of its own.
        here: Which of the stages runs in the thread that asks.
        meter: Takes the times.
        name: Of the source, as a stage.
        depth: How many items wait between two stages at most.

    Raises:
        Whatever the source or a stage raises.
    """
    channels = [_Channel(depth) for _ in range(len(stages) + 1)]
    threads = [Thread(target=_feed, args=(source, channels[0], meter, name), daemon=True)]
    for at, stage in enumerate(stages):
        if at != here:
            threads.append(Thread(target=_work, args=(stage, channels[at], channels[at + 1], meter), daemon=True))
    meter.begin()
    for thread in threads:
        thread.start()
    try:
        yield from _asked(stages[here], channels[here], channels[here + 1], channels[-1], meter)
    finally:
        for channel in channels:
            channel.abandon()
        for thread in threads:
            thread.join(_PATIENCE_S)


def _asked(stage: Stage, given: _Channel, made: _Channel, done: _Channel, meter: Meter) -> Iterator[Any]:
    """Run one stage here; yield what is done meanwhile, and then the rest."""
    under_way, failed = 0, None

    def next_done() -> Any:
        nonlocal under_way
        under_way -= 1
        item = done.get()
        if isinstance(item, _Failed):
            raise item.cause
        meter.count()
        return item

    while True:
        item = given.get()
        if item is _END or isinstance(item, _Failed):
            failed = item.cause if isinstance(item, _Failed) else None
            break
        result = meter.timed(stage.name, lambda item=item: stage.work(item))  # type: ignore[misc]
        while len(made.items) >= made.depth:
            yield next_done()
        made.put(result)
        under_way += 1
        while under_way and done.items:
            yield next_done()
    made.close()
    while under_way:
        yield next_done()
    if failed is not None:
        raise failed


def _feed(source: Iterator[Any], out: _Channel, meter: Meter, name: str) -> None:
    """Put the items of a source into a channel."""
    try:
        while True:
            item = meter.timed(name, lambda: next(source, _END))
            if item is _END or not out.put(item):
                break
    except BaseException as cause:
        out.put(_Failed(cause))
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
        out.close()


def _work(stage: Stage, given: _Channel, made: _Channel, meter: Meter) -> None:
    """Do a stage's work on what comes through one channel, and put the results into the next."""
    try:
        while (item := given.get()) is not _END:
            if not isinstance(item, _Failed):
                item = meter.timed(stage.name, lambda item=item: stage.work(item))  # type: ignore[misc]
            if not made.put(item) or isinstance(item, _Failed):
                break
    except BaseException as cause:
        made.put(_Failed(cause))
    finally:
        given.abandon()
        made.close()
