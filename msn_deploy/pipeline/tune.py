"""`calibrate --tune latency`: which layers make the network slower in INT8, on the machine where it runs?

Each layer has a candidate: the whole file with this layer left out of INT8. Candidates and the file that they start
from take turns in the blocks of `bench`. There are three steps, each with models loaded anew, so that none relies on
the luck of the one before:

1. Every candidate, for a moment. Most layers are faster in INT8, and done with.
2. The rest, longer, and loaded five times: how fast a loaded model is depends also on where its memory happens to be.
   A layer is slow in INT8 if `bench` would call its candidate FASTER, with Holm's correction for all of them.
3. All slow layers left out together. They stay out if this is FASTER too, and within the budget of accuracy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msn_deploy.bench.compare import medians_of
from msn_deploy.bench.load import Clock, Query
from msn_deploy.bench.measure import BLOCKS_PER_ROUND, MIN_ROUNDS, Arm, MeasureOptions, measure, time_queries
from msn_deploy.bench.stats import Ratio, holm, ratio_to_baseline
from msn_deploy.bench.validity import block_causes, judge
from msn_deploy.core.errors import GateError, InvalidMeasurement, MissingDependency, MissingDevice
from msn_deploy.core.model_info import Runtime
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import BuildOptions, OrtRunner, Runner, build_engine_file, runner_of, what_machine
from msn_deploy.engine.build import Site, choose_site
from msn_deploy.engine.preflight import preflight
from msn_deploy.engine.tensors import InputShapes
from msn_deploy.machine.state import Probe, Reading, usable_cores
from msn_deploy.model.feeds import Feeds
from msn_deploy.model.opened import OpenModel, made_model
from msn_deploy.pipeline.bench_load import bound_query
from msn_deploy.pipeline.budget import Sensitivity

if TYPE_CHECKING:
    from onnx import ModelProto

Load = Callable[[tuple[str, ...]], AbstractContextManager[Query]]
"""Loads the network with these layers out of INT8, anew each time, and frees it in the end."""

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

    times: of each layer, the time of its candidate over that of the start. slow: the layers that are slow in INT8.
    together: the time without INT8 in any of them; None if there are none. let_out: `slow`, or () if that is not
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
    outputs. time: of the whole without INT8 in this layer, over that with it. None: not measured, as of a layer that
    was left out before.
    """

    layer: str
    precision: str
    sqnr_db: float | None
    time: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a tuning came to: see SlowLayers. timed_by: the runtime and what it ran on."""

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
    """Return which layers make the network slower in INT8.

    Args:
        layers: Those that are in INT8 at the start.
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
                Arm(name=", ".join(each) or "INT8", build=build, run=stack.enter_context(load(each)))
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


class Tuner:
    """Lets layers out of one calibrated network; once, with what was left out of INT8 before.

    int8: makes the graph with these layers left out. layers: all that can be in INT8. feeds: what is timed. site: where
    engines are built, from `timing_site`.
    """

    def __init__(
        self,
        int8: Callable[[Collection[str]], ModelProto],
        layers: Sequence[str],
        feeds: Sequence[Feeds],
        site: Site | None,
        progress: Progress,
    ) -> None:
        shapes = {name: array.shape for name, array in feeds[0].items()}
        self.int8, self.layers, self.site, self.progress = int8, tuple(dict.fromkeys(layers)), site, progress
        self.feeds = [each for each in feeds if {name: array.shape for name, array in each.items()} == shapes]
        self.found = SlowLayers(times={})

    def __call__(
        self, left_out: tuple[str, ...], fits: Callable[[tuple[str, ...]], bool] = lambda _: True
    ) -> tuple[str, ...]:
        """Return `left_out`, and what is slow in INT8.

        fits: whether the network is within the budget with these layers left out. Raises GateError if no layer is left.
        """

        def load(more: tuple[str, ...]) -> AbstractContextManager[Query]:
            return loaded(self.int8((*left_out, *more)), self.feeds, self.site)

        self.found = find_slow(
            [each for each in self.layers if each not in left_out],
            load,
            fits=lambda more: fits((*left_out, *more)),
            probe=Probe(),
            progress=self.progress,
        )
        if self.found.let_out and {*left_out, *self.found.let_out}.issuperset(self.layers):
            assert self.found.together is not None
            other = "Keep the FP32 file." if self.site is None else "Take `build-engine --precision fp16`."
            raise GateError(
                f"every layer makes the network slower in INT8 here: without INT8 it takes "
                f"{self.found.together.ratio:.2f} of the time.\nNothing was written. {other}"
            )
        return (*left_out, *self.found.let_out)

    def tuning(self, left_out: Collection[str], in_fp32: Collection[str], ranking: Sequence[Sensitivity]) -> Tuning:
        """Return what it came to, with what is not INT8 in the file. ranking: what INT8 costs each layer."""
        other = "fp16" if self.site else "fp32"
        sqnr = {each.layer: each.sqnr_db for each in ranking}
        found = self.found
        return Tuning(
            timed_by=_title(self.site),
            layers=tuple(
                TunedLayer(
                    layer=each,
                    precision="int8" if each not in left_out else "fp32" if each in in_fp32 else other,
                    sqnr_db=sqnr.get(each),
                    time=found.times.get(each),
                )
                for each in self.layers
            ),
            slow=found.slow,
            together=found.together,
            let_out=found.let_out,
        )


def timing_site(runtime: Runtime) -> Site | None:
    """Return where engines are built and timed; None for a file that ONNX Runtime runs on the CPU.

    Raises MissingDevice without a GPU, MissingDependency without TensorRT.
    """
    if runtime == "onnxruntime":
        return None
    machine = what_machine()
    if not machine.has_gpu:
        raise MissingDevice(
            "`--tune latency` times engines, and no GPU is here.\n"
            "Run it on the device, or place INT8 for this CPU: `--runtime onnxruntime`."
        )
    site = choose_site(BuildOptions(), "int8", machine=machine)
    if site.backend.is_rtx:
        raise MissingDependency(
            f"`--tune latency` times engines of TensorRT; here is {site.backend.title}.\n"
            "Run it on the device, or place INT8 for this CPU: `--runtime onnxruntime`."
        )
    return site


def _title(site: Site | None) -> str:
    threads = len(usable_cores())
    return site.backend.title if site else f"ONNX Runtime on the CPU, {threads} thread{'s' * (threads > 1)}"


@contextmanager
def loaded(graph: ModelProto, feeds: Sequence[Feeds], site: Site | None) -> Iterator[Query]:
    """Load a graph into ONNX Runtime, or its engine into TensorRT; yield what runs it on the next of the feeds."""
    model = made_model(Path("candidate.int8.onnx"), graph, graph.SerializeToString())
    if site is None:
        with closing(OrtRunner(model, threads=len(usable_cores()))) as runner:
            yield bound_query(runner, feeds)
        return
    with partial_folder() as folder, closing(_engine(model, feeds[0], site, folder / "candidate.engine")) as engine:
        turn = itertools.cycle(feeds)
        yield lambda: engine.run(next(turn))


def _engine(model: OpenModel, feeds: Feeds, site: Site, path: Path) -> Runner:
    """Build an engine for the shapes of these feeds, and load it."""
    given = {spec.name: feeds[spec.name].shape for spec in model.inputs if None in (spec.shape or (None,))}
    shapes = tuple(InputShapes(name, shape, shape, shape) for name, shape in given.items())
    build_engine_file(model, path, options=BuildOptions(shapes=shapes), site=site)
    return runner_of(preflight(path), wait="spin")
