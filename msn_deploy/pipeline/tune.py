"""`--tune latency`: which layers make the network slower in INT8 or FP16, on the machine where it runs?

Each layer has a candidate: the whole file with this layer left out of that precision. Candidates and the file that they
start from take turns in the blocks of `bench`. There are three steps, each with models loaded anew, so that none relies
on the luck of the one before:

1. Every candidate, for a moment. Most layers are faster in that precision, and done with.
2. The rest, longer, and loaded five times: how fast a loaded model is depends also on where its memory happens to be.
   A layer is slow if `bench` would call its candidate FASTER, with Holm's correction for all of them.
3. All slow layers left out together. They stay out if this is FASTER too, and within the budget of accuracy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msn_deploy.bench.compare import medians_of
from msn_deploy.bench.load import Clock, Query
from msn_deploy.bench.measure import BLOCKS_PER_ROUND, MIN_ROUNDS, Arm, MeasureOptions, measure, time_queries
from msn_deploy.bench.stats import Ratio, holm, ratio_to_baseline
from msn_deploy.bench.validity import block_causes, judge
from msn_deploy.core.errors import GateError, InputError, InvalidMeasurement, MissingDependency, MissingDevice
from msn_deploy.core.model_info import Precision
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import BuildOptions, OrtRunner, Runner, build_engine_file, runner_of, what_machine
from msn_deploy.engine.build import Site, choose_site
from msn_deploy.engine.preflight import preflight
from msn_deploy.engine.tensors import InputShapes
from msn_deploy.engine.trt_build import is_weakly_typed
from msn_deploy.machine.state import Probe, Reading, usable_cores
from msn_deploy.model.feeds import Feeds
from msn_deploy.model.opened import OpenModel, made_model
from msn_deploy.pipeline.bench_load import bound_query
from msn_deploy.pipeline.budget import Sensitivity

if TYPE_CHECKING:
    from onnx import ModelProto

Load = Callable[[tuple[str, ...]], AbstractContextManager[Query]]
"""Loads the network with these layers left out, anew each time, and frees it in the end."""

TIMED_FEEDS = 16  # that the queries cycle through
_LOADED = 20  # models in memory at a time
_LOOK_S, _SURE_S = 1.0, 1.2  # per loaded model, in the first step and in the others
_LOADS = 5  # of each candidate, in the others
_DONE_WITH = 0.99  # a candidate that takes more of the time than this is not looked at again
_WARMUP_S, _WARMUP_QUERIES = 0.2, 10
_MARGIN = 2.0  # over the time that the rounds need by the first queries, which are slow


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLayers:
    """What the clock said.

    times: of each layer, the time of its candidate over that of the start. slow: the layers that are slow.
    together: the time with all of them left out; None if there are none. let_out: `slow`, or () if that is not
    FASTER, or not within the budget.
    """

    times: Mapping[str, Ratio]
    slow: tuple[str, ...] = ()
    together: Ratio | None = None
    let_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedLayer:
    """A layer in the file.

    precision: what it has there, "int8", "fp16" or "fp32". sqnr_db: what INT8 in this layer alone leaves of the
    outputs. time: of the whole with this layer left out, over that with it. None: not measured, as of a layer that was
    left out before.
    """

    layer: str
    precision: str
    sqnr_db: float | None
    time: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a tuning came to: see SlowLayers. precision: what was tuned. timed_by: the runtime and what it ran on."""

    precision: Precision
    timed_by: str
    layers: tuple[TunedLayer, ...]
    slow: tuple[str, ...]
    together: Ratio | None
    let_out: tuple[str, ...]


def find_slow(
    layers: Sequence[str],
    load: Load,
    *,
    fits: Callable[[tuple[str, ...]], bool] = lambda _: True,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    probe: Callable[[], Reading] | None = None,
    progress: Progress = silent,
) -> SlowLayers:
    """Return which layers make the network slower in the precision that they have at the start.

    Args:
        layers: Those that can be left out of it.
        load: Given none of them, it loads the start.
        fits: Whether the network with these layers left out is within the budget of accuracy.
        seed: Of the order of blocks.
        clock: Monotonic, in nanoseconds.
        probe: Reads the state of the machine between blocks.
        progress: Told how far each step is.

    Raises:
        InvalidMeasurement: The machine was throttled.
    """

    def taking_turns(candidates: Sequence[tuple[str, ...]], seconds: float, loads: int) -> list[Ratio]:
        with ExitStack() as stack:
            arms = [
                Arm(name=", ".join(each) or "all in", build=build, run=stack.enter_context(load(each)))
                for each in ((), *candidates)
                for build in range(loads)
            ]
            options = _options(arms, seconds, loads=loads, seed=seed, clock=clock)
            samples = measure(arms, options=options, clock=clock, probe=probe, progress=progress)
        causes = block_causes(samples.readings)
        if not (validity := judge(causes)).valid:
            raise InvalidMeasurement(validity.message)
        start, *others = medians_of(samples, causes).values()
        return [ratio_to_baseline(each, start, seed=seed) for each in others]

    def times(candidates: Sequence[tuple[str, ...]], seconds: float, loads: int = 1) -> list[Ratio]:
        at_once = _LOADED // loads - 1
        parts = (candidates[at : at + at_once] for at in range(0, len(candidates), at_once))
        return holm([ratio for part in parts for ratio in taking_turns(part, seconds, loads)])

    found = dict(zip(layers, times([(each,) for each in layers], _LOOK_S), strict=True))
    doubtful = [each for each in layers if found[each].ratio < _DONE_WITH]
    found |= zip(doubtful, times([(each,) for each in doubtful], _SURE_S, _LOADS), strict=True)
    slow = tuple(each for each in doubtful if found[each].verdict == "FASTER")
    if not slow:
        return SlowLayers(times=found)
    (together,) = times([slow], _SURE_S, _LOADS)
    let_out = slow if together.verdict == "FASTER" and fits(slow) else ()
    return SlowLayers(times=found, slow=slow, together=together, let_out=let_out)


def _options(arms: Sequence[Arm], seconds: float, *, loads: int, seed: int, clock: Clock) -> MeasureOptions:
    """Return how long to measure: `seconds` per arm, and longer where its blocks would not fit; loads: of each name."""
    query_ns = float(np.mean([time_queries(arm.run, 2, clock)[-1] for arm in arms]))
    needed = _MARGIN * MIN_ROUNDS * BLOCKS_PER_ROUND * query_ns / 1e9
    return MeasureOptions(
        seconds=loads * max(seconds, needed),
        warmup_seconds=_WARMUP_S,
        warmup_queries=_WARMUP_QUERIES,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSite:
    """Where the engines of candidates are built, and with which options."""

    site: Site
    options: BuildOptions


class Tuner:
    """Lets layers out of one network in INT8 or FP16; once, with what was left out before.

    precision: the one that is tuned. make: makes the graph with these layers left out of it. layers: all that can be in
    it. feeds: what is timed. engines: from `engines_for`; None for ONNX Runtime.
    """

    def __init__(
        self,
        precision: Precision,
        make: Callable[[Collection[str]], ModelProto],
        layers: Sequence[str],
        feeds: Sequence[Feeds],
        engines: EngineSite | None,
        progress: Progress,
    ) -> None:
        shapes = {name: array.shape for name, array in feeds[0].items()}
        self.precision, self.make, self.layers = precision, make, tuple(dict.fromkeys(layers))
        self.engines, self.progress = engines, progress
        self.other: Precision = "fp16" if engines is not None and precision == "int8" else "fp32"  # of what is left out
        self.feeds = [each for each in feeds if {name: array.shape for name, array in each.items()} == shapes]
        self.found = SlowLayers(times={})

    def __call__(
        self, left_out: tuple[str, ...], fits: Callable[[tuple[str, ...]], bool] = lambda _: True
    ) -> tuple[str, ...]:
        """Return `left_out`, and what is slow.

        fits: whether the network is within the budget with these layers left out. Raises GateError if no layer is left.
        """

        def load(more: tuple[str, ...]) -> AbstractContextManager[Query]:
            return loaded(self.make((*left_out, *more)), self.feeds, self.engines)

        self.found = find_slow(
            [each for each in self.layers if each not in left_out],
            load,
            fits=lambda more: fits((*left_out, *more)),
            probe=Probe(),
            progress=self.progress,
        )
        if self.found.let_out and {*left_out, *self.found.let_out}.issuperset(self.layers):
            assert self.found.together is not None
            name, ratio = self.precision.upper(), self.found.together.ratio
            instead = f"Take `build-engine --precision {self.other}`." if self.engines else "Keep the FP32 file."
            raise GateError(
                f"every layer makes the network slower in {name} here: without {name} it takes {ratio:.2f} of the time."
                f"\nNothing was written. {instead}"
            )
        return (*left_out, *self.found.let_out)

    def tuning(
        self, left_out: Collection[str], in_fp32: Collection[str], ranking: Sequence[Sensitivity] = ()
    ) -> Tuning:
        """Return what it came to, with what is left out in the file. ranking: what INT8 costs each layer."""
        sqnr = {each.layer: each.sqnr_db for each in ranking}
        found = self.found
        return Tuning(
            precision=self.precision,
            timed_by=_title(self.engines),
            layers=tuple(
                TunedLayer(
                    layer=each,
                    precision=self.precision if each not in left_out else "fp32" if each in in_fp32 else self.other,
                    sqnr_db=sqnr.get(each),
                    time=found.times.get(each),
                )
                for each in self.layers
            ),
            slow=found.slow,
            together=found.together,
            let_out=found.let_out,
        )


def engines_for(precision: Precision, build: BuildOptions) -> EngineSite:
    """Return where and how engines are built and timed.

    Raises MissingDevice without a GPU, MissingDependency without TensorRT, InputError where TensorRT itself chooses
    between FP16 and FP32, or can't.
    """
    machine = what_machine()
    other = " or place INT8 for this CPU: `calibrate --runtime onnxruntime`." if precision == "int8" else ""
    instead = f"Run it on the device{',' if other else '.'}{other}"
    if not machine.has_gpu:
        raise MissingDevice(f"`--tune latency` times engines, and no GPU is here.\n{instead}")
    site = choose_site(build, precision, machine=machine)
    if site.backend.is_rtx:
        raise MissingDependency(f"`--tune latency` times engines of TensorRT; here is {site.backend.title}.\n{instead}")
    if precision == "fp16" and build.dla is not None:
        raise InputError("a DLA has no FP32 that `--tune latency` could take for a layer.\nLeave it out.")
    if precision == "fp16" and is_weakly_typed(site.backend.module):
        raise InputError(
            f"{site.backend.title} chooses FP16 or FP32 for each layer itself, by its own times.\n"
            "Leave `--tune latency` out."
        )
    # One size and no timing cache: every engine is timed at the sizes that run, and finds its kernels anew.
    options = replace(
        build, precision=None, batch=None, min_batch=1, opt_batch=None, timing_cache=None, replicates=1,
        max_dla_fallback=None,
    )  # fmt: skip
    return EngineSite(site=site, options=options)


def _title(engines: EngineSite | None) -> str:
    threads = len(usable_cores())
    cpu = f"ONNX Runtime on the CPU, {threads} thread{'s' * (threads > 1)}"
    return cpu if engines is None else engines.site.backend.title


@contextmanager
def loaded(graph: ModelProto, feeds: Sequence[Feeds], engines: EngineSite | None) -> Iterator[Query]:
    """Load a graph into ONNX Runtime, or its engine into TensorRT; yield what runs it on the next of the feeds."""
    model = made_model(Path("candidate.onnx"), graph, graph.SerializeToString())
    if engines is None:
        with closing(OrtRunner(model, threads=len(usable_cores()))) as runner:
            yield bound_query(runner, feeds)
        return
    with partial_folder() as folder, closing(_engine(model, feeds[0], engines, folder / "candidate.engine")) as engine:
        turn = itertools.cycle(feeds)
        yield lambda: engine.run(next(turn))


def _engine(model: OpenModel, feeds: Feeds, engines: EngineSite, path: Path) -> Runner:
    """Build an engine for the shapes of these feeds, and load it."""
    given = {spec.name: feeds[spec.name].shape for spec in model.inputs if None in (spec.shape or (None,))}
    shapes = tuple(InputShapes(name, shape, shape, shape) for name, shape in given.items())
    build_engine_file(model, path, options=replace(engines.options, shapes=shapes), site=engines.site)
    return runner_of(preflight(path, plugins=engines.options.plugins), wait="spin")
