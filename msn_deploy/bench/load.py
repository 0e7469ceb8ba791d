"""How are several queries kept in flight? Lanes that hold one query each, and never stand still.

A lane begins its next query as soon as it has the answer to its last; a latency is from one answer of a lane to the
next. The rate of a block is the sum of the lanes' own rates, each over whole queries of its lane, and every lane stays
busy until the last one has all of its queries: what it takes to start and to end is in no number.

Lanes of a runtime whose calls wait (ONNX Runtime) have a thread each; those of one whose calls only queue (TensorRT)
are served in turn by one thread, as by trtexec.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Barrier, Lock
from typing import Protocol

from msn_deploy.machine.usage import Gauge, Usage

_LOOK_S = 0.05  # between looks at what the machine is doing
Clock = Callable[[], int]
Query = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBlock:
    """A block of queries, several of them in flight. samples: ns of each, from its beginning until its answer.

    ns_per_query: of the time that goes by, over the queries that are answered in it. usage: of the machine meanwhile.
    """

    samples: Sequence[int]
    ns_per_query: float
    usage: Usage | None = None


class Load(ABC):
    """Queries in flight, one on each of `in_flight` lanes.

    spread_ns: how long a block runs, at least, before anything counts.
    """

    spread_ns = 0

    def __init__(self, in_flight: int, gauge: Gauge | None) -> None:
        self.in_flight, self._gauge = in_flight, gauge

    def block(self, queries: int, settle: int, clock: Clock = time.perf_counter_ns) -> LoadedBlock:
        """Run at least `queries` of them, equally many on each lane, after at least `settle` that do not count.

        What a lane raises ends the block and passes through, as does KeyboardInterrupt.
        """
        each = -(-queries // self.in_flight)
        if self._gauge is not None:
            self._gauge.begin()
        served = self._serve(each, max(1, settle), clock)
        usage = None if self._gauge is None else self._gauge.end()
        rate = sum(each / max(1, sum(taken)) for taken in served)
        return LoadedBlock(samples=[ns for taken in served for ns in taken], ns_per_query=1 / rate, usage=usage)

    @abstractmethod
    def _serve(self, each: int, settle: int, clock: Clock) -> list[list[int]]:
        """Return of each lane what its queries took, ns, which follow each other without a gap."""

    @abstractmethod
    def running(self) -> AbstractContextManager[Query]:
        """Keep all lanes busy meanwhile; each call of what is yielded waits for one more answer."""


@dataclass(slots=True)
class _Lanes:
    """What the threads of a block have in common."""

    busy: int
    """Lanes that have not all their queries."""
    stop: bool = False


class ThreadedLoad(Load):
    """Lanes that are calls which wait for their answer, each in a thread of its own.

    >>> load = ThreadedLoad([lambda: session.run(None, feeds)] * 4)
    >>> 1e9 / load.block(400, 1).ns_per_query  # queries per second
    """

    # Threads that have just begun share a core until the scheduler has spread them: on two cores, the queries of a
    # block's first 20 ms took twice as long as those after them.
    spread_ns = 50_000_000

    def __init__(self, lanes: Sequence[Query], *, gauge: Gauge | None = None) -> None:
        """Take a call for each lane; gauge: tells what is used of the machine."""
        super().__init__(len(lanes), gauge)
        self._lanes = list(lanes)

    def _serve(self, each: int, settle: int, clock: Clock) -> list[list[int]]:
        ready, lock, lanes = Barrier(self.in_flight), Lock(), _Lanes(self.in_flight)

        def serve(query: Query) -> list[int]:
            try:
                ready.wait()
                spread = clock() + self.spread_ns
                settled = 0
                while (settled < settle or clock() < spread) and not lanes.stop:
                    query()
                    settled += 1
                taken: list[int] = []
                start = clock()
                while len(taken) < each and not lanes.stop:
                    query()
                    taken.append((now := clock()) - start)
                    start = now
                with lock:
                    lanes.busy -= 1
                while lanes.busy and not lanes.stop:
                    query()
                return taken
            except BaseException:
                lanes.stop = True
                raise

        with ThreadPoolExecutor(self.in_flight) as pool:
            try:
                futures = [pool.submit(serve, query) for query in self._lanes]
                while wait(futures, timeout=_LOOK_S).not_done:
                    if self._gauge is not None:
                        self._gauge.look()
            finally:
                lanes.stop = True
            return [future.result() for future in futures]

    @contextmanager
    def running(self) -> Iterator[Query]:
        """See Load."""
        answers: SimpleQueue[BaseException | None] = SimpleQueue()
        lanes = _Lanes(self.in_flight)

        def serve(query: Query) -> None:
            try:
                while not lanes.stop:
                    query()
                    answers.put(None)
            except BaseException as cause:
                answers.put(cause)

        def one_more() -> None:
            cause = answers.get()
            if cause is not None:
                raise cause

        with ThreadPoolExecutor(self.in_flight) as pool:
            try:
                for query in self._lanes:
                    pool.submit(serve, query)
                yield one_more
            finally:
                lanes.stop = True


class Lane(Protocol):
    """A place for one query in flight, of a runtime whose calls only queue."""

    def submit(self) -> None:
        """Queue a query."""
        ...

    def collect(self) -> object:
        """Wait for its answer."""
        ...


class QueuedLoad(Load):
    """Lanes that one thread serves in turn: it waits for the answer of each, and queues the next."""

    def __init__(self, lanes: Sequence[Lane], *, gauge: Gauge | None = None) -> None:
        """Take lanes that are set up; gauge: tells what is used of the machine."""
        super().__init__(len(lanes), gauge)
        self._lanes = list(lanes)

    def _serve(self, each: int, settle: int, clock: Clock) -> list[list[int]]:
        taken: list[list[int]] = [[] for _ in self._lanes]
        starts = [0] * self.in_flight
        due = clock() + int(_LOOK_S * 1e9)
        with self._all_in_flight():
            for turn in range(settle + each):
                for at, lane in enumerate(self._lanes):
                    lane.collect()
                    now = clock()
                    lane.submit()
                    if turn >= settle:
                        taken[at].append(now - starts[at])
                    starts[at] = now
                if self._gauge is not None and clock() >= due:
                    self._gauge.look()
                    due = clock() + int(_LOOK_S * 1e9)
        return taken

    @contextmanager
    def _all_in_flight(self) -> Iterator[None]:
        """Queue a query on every lane, and wait in the end for those that are in flight."""
        for lane in self._lanes:
            lane.submit()
        yield
        for lane in self._lanes:
            lane.collect()

    @contextmanager
    def running(self) -> Iterator[Query]:
        """See Load."""
        turn = 0

        def one_more() -> None:
            nonlocal turn
            lane = self._lanes[turn % self.in_flight]
            lane.collect()
            lane.submit()
            turn += 1

        with self._all_in_flight():
            yield one_more
