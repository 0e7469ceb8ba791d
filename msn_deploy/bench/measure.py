"""How long does one query take, for several arms under the same conditions?

Arms are timed in rounds. A round is a random order of all arms followed by its mirror image (A B C C B A), so each arm
has two blocks per round whose middle falls on the same moment: a machine that slows down steadily slows all arms alike.
The order is random, so what lasts longer than a block meets each arm by chance and not by rule.

A block is queries one after the other, or, of an arm with a load, queries of which several are in flight.
"""

from __future__ import annotations

import gc
import math
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol

from msn_deploy.bench.load import Load, LoadedBlock
from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.core.model_info import Runtime
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.reader import record
from msn_deploy.machine.state import Reading

MIN_ROUNDS = 10
BLOCKS_PER_ROUND = 2
# A query of a few microseconds would otherwise fill the memory and the result file with millions of samples.
MAX_BLOCK_QUERIES = 10_000
MAX_ARM_QUERIES = 2_000_000
# A limit on queries shortens the blocks first: what is compared is rounds.
_ROUNDS_KEPT = 50

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFacts:
    """What is known of an arm's model. None: not known, and not written."""

    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    runtime_norm_fusions: Literal["on", "off"] | None = None
    """Whether the runtime may merge normalisations into other layers."""
    net: str | None = None
    norm: str | None = None
    precision: str | None = None
    runtime: Runtime | None = None
    """What its INT8 is laid out for."""
    folded: bool | None = None
    graph: str | None = None
    """The structural hash of its graph."""
    norms_left: int | None = None
    """How many normalisation layers its graph has."""
    changed: bool | None = None
    """Another tool has changed the graph after it was exported."""
    provider: str | None = None
    inputs: str | None = None
    """Name, type and shape of everything that a query feeds."""
    images: Parent | None = None
    """What its queries were made of."""
    accuracy: float | None = None
    """0 to 1."""
    in_flight: int | None = None
    """How many queries at a time; None: one."""
    threads: int | None = None
    """Of the runtime, where that is not what the profile says."""
    note: str | None = None
    """What one has to know to read its times."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """What another version, or a script of one's own, has noted besides; JSON values."""

    def same_graph(self, other: ArmFacts) -> bool:
        """Return whether both are known to run one graph in one way, so that a difference between them is noise."""
        return (
            self.graph is not None
            and self.graph == other.graph
            and all(getattr(self, name) == getattr(other, name) for name in _RUN_ALIKE)
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is known as JSON values."""
        known = {name: value for name in _FACTS if (value := getattr(self, name)) is not None}
        return {**known, **({} if self.images is None else {"images": asdict(self.images)}), **self.others}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArmFacts:
        """Read what `to_json` wrote, in this version or an earlier one. Raises InputError for other types of values."""
        if not isinstance(value, Mapping):
            raise InputError("facts must be a section.")
        known = {name: value[name] for name in _FACTS if name in value}
        others = {name: content for name, content in value.items() if name not in _FACTS}
        return record(cls, known, source="facts", others=others)


_RUN_ALIKE = ("precision", "runtime", "runtime_norm_fusions", "changed", "provider", "in_flight", "threads")
_FACTS = tuple(each.name for each in fields(ArmFacts) if each.name != "others")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to time: `run` answers one query and is already bound to its input.

    `run` must return only when the answer is there (a GPU runner synchronises). build: arms of one name are builds of
    one model, numbered from 0: engines built anew, sessions loaded anew. load: what keeps several queries in flight, in
    place of `run`.
    """

    name: str
    run: Callable[[], object]
    build: int = 0
    facts: ArmFacts = ArmFacts()
    load: Load | None = None

    @property
    def in_flight(self) -> int:
        """How many queries are in flight at a time."""
        return 1 if self.load is None else self.load.in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How to measure; equal for all arms.

    seconds: measured time per name, shared by its builds. block_ms: intended length of a block; short ones give more
    rounds in the same time, and arms that take turns faster see the same machine. An arm is warmed up for at least
    warmup_seconds and at least warmup_queries. settle_queries: run and dropped at the start of every block, so that
    the tail does not hold the cost of switching from one arm's weights to another's. max_queries: of one arm; quick
    ones end before their seconds are over, which keeps result files small. seed: of the block order.
    Raises InputError for values that cannot be used.
    """

    seconds: float = 10.0
    block_ms: float = 25.0
    warmup_seconds: float = 2.0
    warmup_queries: int = 50
    settle_queries: int = 1
    max_queries: int = MAX_ARM_QUERIES
    seed: int = 0

    def __post_init__(self) -> None:
        for name, unit in (("seconds", "s"), ("block_ms", "ms")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"the benchmark's {name} must be a number above 0, not {value} {unit}.")
        if not (math.isfinite(self.warmup_seconds) and self.warmup_seconds >= 0):
            raise InputError(f"the benchmark's warmup_seconds must be 0 or more, not {self.warmup_seconds}.")
        if self.warmup_queries < 1:
            raise InputError(f"the benchmark's warmup_queries must be at least 1, not {self.warmup_queries}.")
        if self.settle_queries < 0:
            raise InputError(f"the benchmark's settle_queries must be 0 or more, not {self.settle_queries}.")
        least = BLOCKS_PER_ROUND * _ROUNDS_KEPT
        if not least <= self.max_queries <= MAX_ARM_QUERIES:
            raise InputError(
                f"the benchmark's max_queries must lie between {least} and {MAX_ARM_QUERIES}, not {self.max_queries}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSamples:
    """Raw samples of one arm: blocks in time order, two per round; each block holds nanoseconds per query (int64).

    block_starts_ns: when each block began, counted from the start of the first block of any arm. slots: which block
    of the whole run each was, 0 the first. loaded: of an arm with a load, what each block came to; its samples are in
    `blocks`.
    """

    name: str
    build: int = 0
    facts: ArmFacts
    blocks: tuple[array[int], ...]
    block_starts_ns: tuple[int, ...]
    slots: tuple[int, ...]
    loaded: tuple[LoadedBlock, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Raw samples of all arms, in the order the arms were given, and how they were taken.

    readings: the state of the machine before every block and after the last, in time order; empty without a probe.
    """

    arms: tuple[ArmSamples, ...]
    options: MeasureOptions
    readings: tuple[Reading, ...] = ()


class Watch(Protocol):
    """Looks at a measurement that runs; `taken` returns what was measured until then."""

    def __call__(self, taken: Callable[[], Samples], /) -> None: ...


@dataclass(slots=True)
class _Recorder:
    """The blocks of one arm, while they are measured."""

    arm: Arm
    blocks: list[array[int]] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    loaded: list[LoadedBlock] = field(default_factory=list)

    def take(self, queries: int, settle: int, slot: int, begin: int, clock: Clock) -> None:
        """Measure one more block; begin: of the whole run."""
        self.slots.append(slot)
        if self.arm.load is None:
            time_queries(self.arm.run, settle, clock)
            self.starts_ns.append(clock() - begin)
            self.blocks.append(array("q", time_queries(self.arm.run, queries, clock)))
            return
        self.starts_ns.append(clock() - begin)
        block = self.arm.load.block(queries, settle, clock)
        self.blocks.append(array("q", block.samples))
        self.loaded.append(replace(block, samples=()))

    def taken(self) -> ArmSamples:
        """Return what was measured until now."""
        return ArmSamples(
            name=self.arm.name,
            build=self.arm.build,
            facts=self.arm.facts,
            blocks=tuple(self.blocks),
            block_starts_ns=tuple(self.starts_ns),
            slots=tuple(self.slots),
            loaded=tuple(self.loaded),
        )


DEFAULT_OPTIONS = MeasureOptions()


def measure(
    arms: Sequence[Arm],
    *,
    options: MeasureOptions = DEFAULT_OPTIONS,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
    probe: Callable[[], Reading] | None = None,
    watch: Watch | None = None,
) -> Samples:
    """Time every arm in randomised mirrored blocks and return the raw samples.

    clock: monotonic, in nanoseconds. probe: reads the state of the machine, between blocks. progress: called between
    blocks, in planned seconds, never while a block runs. watch: called there too, just before.
    Raises InputError for no arms, for two of one name and build, or for unequal numbers of builds; InvalidMeasurement
    before measuring if fewer than MIN_ROUNDS rounds fit into the budget. What `run` raises passes through, as does
    KeyboardInterrupt.
    """
    models = _count_models(arms)
    warmup_s = len(arms) * options.warmup_seconds
    total_s = warmup_s + models * options.seconds
    readings: list[Reading] = []
    with _garbage_collector_off():
        query_ns = []
        for index, arm in enumerate(arms):
            progress(index * options.warmup_seconds, total_s, f"warming up {arm.name}")
            query_ns.append(_warm_up(arm, options, clock))
        queries, rounds = _plan(query_ns, models, options, arms)
        order = _block_order(len(arms), rounds, seed=options.seed)
        recorders = [_Recorder(arm) for arm in arms]
        begin = clock()

        def taken() -> Samples:
            samples = tuple(each.taken() for each in recorders)
            return Samples(arms=samples, options=options, readings=tuple(readings))

        for done, index in enumerate(order):
            note = f"round {1 + done // (BLOCKS_PER_ROUND * len(arms))} of {rounds}"
            if watch is not None and done:
                watch(taken)
            progress(warmup_s + (total_s - warmup_s) * done / len(order), total_s, note)
            if probe is not None:
                readings.append(probe())
            recorders[index].take(queries[index], options.settle_queries, done, begin, clock)
        if probe is not None:
            readings.append(probe())
    progress(total_s, total_s, "measured")
    return taken()


def _count_models(arms: Sequence[Arm]) -> int:
    """Return the number of names; each needs equally many builds, or one would be measured better than others."""
    if not arms:
        raise InputError("nothing to measure: name at least one model.")
    keys = [(arm.name, arm.build) for arm in arms]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"two arms are called {twice[0]!r}; each needs a name of its own.")
    builds = Counter(arm.name for arm in arms)
    if len(set(builds.values())) > 1:
        raise InputError(f"models need equal numbers of builds, not {dict(builds)}.")
    return len(builds)


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_queries(run: Callable[[], object], queries: int, clock: Clock) -> list[int]:
    """Return nanoseconds per query. Warm-up, settling and measuring all go through here, so they run the same code."""
    taken = [0] * queries
    for index in range(queries):
        start = clock()
        run()
        taken[index] = clock() - start
    return taken


def _warm_up(arm: Arm, options: MeasureOptions, clock: Clock) -> float:
    """Warm one arm up; return the nanoseconds of a warm query (median of the later half)."""
    taken: list[float] = []
    queries = done = 0
    until = clock() + options.warmup_seconds * 1e9
    while done < options.warmup_queries or clock() < until:
        if arm.load is None:
            taken += time_queries(arm.run, 1, clock)
            done += 1
            continue
        # From a few queries to a quarter of all until now, so that blocks grow as long as they will be.
        queries = max(arm.load.in_flight, min(done // 4, MAX_BLOCK_QUERIES))
        taken.append(arm.load.block(queries, options.settle_queries, clock).ns_per_query)
        done += queries
    later = sorted(taken[len(taken) // 2 :])
    return max(1.0, float(later[len(later) // 2]))


def _plan(
    query_ns: Sequence[float], models: int, options: MeasureOptions, arms: Sequence[Arm]
) -> tuple[tuple[int, ...], int]:
    """Choose queries per block (per arm) and the number of rounds, once, so that no arm is stopped by its own luck.

    Of several queries in flight each lane has as many.
    """
    most = min(MAX_BLOCK_QUERIES, options.max_queries // (BLOCKS_PER_ROUND * _ROUNDS_KEPT))
    wanted = [min(most, max(1, round(options.block_ms * 1e6 / ns))) for ns in query_ns]
    queries = tuple(arm.in_flight * -(-count // arm.in_flight) for count, arm in zip(wanted, arms, strict=True))
    round_ns = BLOCKS_PER_ROUND * sum(
        _block_ns(count, ns, arm, options.settle_queries)
        for count, ns, arm in zip(queries, query_ns, arms, strict=True)
    )
    rounds = round(options.seconds * 1e9 * models / round_ns)
    if rounds < MIN_ROUNDS:
        # A quarter more than is needed now, so that the next try does not fail by a hair.
        needed_s = math.ceil(1.25 * MIN_ROUNDS * round_ns / models / 1e9)
        raise InvalidMeasurement(
            f"{rounds} rounds of blocks fit into {options.seconds:g} s per model; an interval needs {MIN_ROUNDS}.\n"
            f"The slowest model takes {max(query_ns) / 1e6:.3g} ms per query.\n"
            f"Raise the time: `--seconds {needed_s}`."
        )
    return queries, min(rounds, options.max_queries // (BLOCKS_PER_ROUND * max(queries)))


def _block_ns(queries: int, query_ns: float, arm: Arm, settle: int) -> float:
    """Return what a block takes. Under load, so do the queries that settle and those that wait for the last lane."""
    if arm.load is None:
        return queries * query_ns
    settling = max(arm.in_flight * max(1, settle) * query_ns, arm.load.spread_ns)
    return (queries + arm.in_flight) * query_ns + settling


def _block_order(arms: int, rounds: int, *, seed: int) -> list[int]:
    """Return arm numbers in time order: per round a random permutation, then its mirror image."""
    generator = random.Random(seed)
    order: list[int] = []
    for _ in range(rounds):
        forth = generator.sample(range(arms), arms)
        order += [*forth, *reversed(forth)]
    return order
