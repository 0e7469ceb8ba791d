"""How much of a network can be INT8 before its metric drops, or its outputs differ, by more than is allowed?

Layers are ranked by what INT8 in that layer alone does to the outputs (SQNR), and the worst are left in FP16, as few of
them as the budget allows: one of the task's metric, or one of SQNR for any network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import OrtRunner
from msn_deploy.model.feeds import Array, Feeds, joined, rows_of
from msn_deploy.model.opened import made_model
from msn_deploy.tasks.task import Score, metric_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.quant.layout import Layout

CHUNK = 32  # samples per run of an open batch
_RANKED = 256  # images that rank the layers
_MOST_PRUNED = 16  # layers left out that are tried one by one: each costs a run over all images
_Z95 = 1.959964
_NO_FP16 = "Nothing was written. Keep the FP32 file, or take other data or another `--method`."
Tune = Callable[[tuple[str, ...], Callable[[Collection[str]], bool]], tuple[str, ...]]
"""Adds to the layers left out for accuracy; the second tells whether a set of them is within the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What INT8 in this layer alone leaves of the outputs: their power over that of the error, in decibels."""

    layer: str
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the budget came to.

    kind: "INT8" (all layers), "MIXED" (left_out stay in FP16; of those, in_fp32 in FP32, for FP16 is not enough).
    ranking: the most sensitive layer first; empty where INT8 was good enough. metric: of a budget of the metric.
    sqnr_db, min_sqnr_db: of a budget of SQNR, that of the worst float output and what was asked for.
    """

    kind: Literal["INT8", "MIXED"]
    left_out: tuple[str, ...]
    in_fp32: dict[str, str]
    samples: int
    ranking: tuple[Sensitivity, ...]
    metric: MetricDrop | None = None
    sqnr_db: float | None = None
    min_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDrop:
    """How much worse INT8 is than FP32 in a metric, on the same images.

    name, unit: of the metric. drop: how much worse, in that unit. interval: its 95 % interval, paired; None for a
    metric that is not the mean of what each image adds. allowed: what was asked for.
    """

    name: str
    unit: str
    fp32: float
    int8: float
    drop: float
    interval: tuple[float, float] | None
    allowed: float


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a metric may drop: `amount` in `unit`, "pp" for percentage points, "%" of its value, or the metric's own."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    def of(self, score: Score) -> float:
        """Return it in the metric's unit. Raises InputError for a unit that the metric has not."""
        if self.unit == "%":
            return self.amount / 100 * abs(score.value)
        if self.unit == "pp" and score.unit == "share":
            return self.amount / 100
        if self.unit == score.unit:
            return self.amount
        own = "0.5pp" if score.unit == "share" else f"0.5{score.unit}" if score.unit else "2%"
        raise InputError(
            f"`--max-drop {self}`: {score.metric} is not measured in "
            f"{self.unit or 'plain numbers'}.\nSay such as {own}, or 2% of it."
        )


def as_allowed(drop: Allowed | float) -> Allowed:
    """Return what may drop; a number is a share, 0.005 for half a point."""
    return drop if isinstance(drop, Allowed) else Allowed(100 * drop, "pp")


def parse_drop(text: str) -> Allowed:
    """Turn "0.5pp", "2%", "0.3dB" or "0.1" into what a metric may drop. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(pp|%|[A-Za-z]*)", text.strip())
    if found is None or (found[2] in ("pp", "%") and float(found[1]) >= 100):
        raise InputError(
            f"`--max-drop {text}` is not how much a metric may drop.\nWrite 0.5pp (percentage points), or 2%, or 0.3dB."
        )
    return Allowed(float(found[1]), found[2])


def drop_of(before: Score, after: Score) -> float:
    """Return by how much a metric is worse after than before."""
    return before.value - after.value if before.higher_is_better else after.value - before.value


def drop_interval(before: Score, after: Score) -> tuple[float, float] | None:
    """Return the paired 95 % interval of `drop_of`; None for metrics that are not the mean of what each image adds."""
    if before.each is None or after.each is None:
        return None
    if set(np.unique(np.concatenate([before.each, after.each]))) <= {0.0, 1.0}:
        return paired_drop(before.each.astype(bool), after.each.astype(bool))[1]
    worse = before.each - after.each if before.higher_is_better else after.each - before.each
    half = _Z95 * float(worse.std(ddof=1)) / math.sqrt(len(worse)) if len(worse) > 1 else math.inf
    return float(worse.mean()) - half, float(worse.mean()) + half


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """Return by how much the share of right answers drops, and its 95 % interval.

    before, after: whether each image was right, (N,). The interval is Bonett and Price's for paired proportions
    (J. Educ. Behav. Stat. 37, 2012): Wald's with one discordant pair more on each side, good from few pairs on.
    """
    count = len(before)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p, q = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    half = _Z95 * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    return (lost - won) / count, (p - q - half, p - q + half)


def quantised_graph(
    model: ModelProto,
    ranges: Mapping[str, float],
    maxima: Mapping[str, float],
    left_out: Collection[str],
    layout: Layout | None = None,
    minima: Mapping[str, float] | None = None,
) -> tuple[ModelProto, dict[str, str]]:
    """Return the graph whose `left_out` layers work in FP16, and what stays in FP32 instead, with the reason.

    Around INT8 the rest is FP32. Around FP8 it is FP16, since TensorRT writes what a convolution in FP8 makes to memory
    before it is rounded for the next. ranges: of what is quantised; maxima: largest magnitudes of all activations,
    which FP16 has to hold; minima: see `needs_fp32`. layout: None is TensorRT's INT8; on a CPU all that is left out
    stays in FP32, for ONNX Runtime has no kernels in FP16 there.
    """
    from msn_deploy.quant.fp32_nodes import needs_fp32
    from msn_deploy.quant.layout import TENSORRT
    from msn_deploy.quant.placement import name_of
    from msn_deploy.quant.precision import in_fp16
    from msn_deploy.quant.quantize import quantize

    layout = layout or TENSORRT
    nothing = left_out and not layout.place(model, leave_out=left_out).layers
    made = model if nothing else quantize(model, ranges, leave_out=left_out, layout=layout)
    wanted = left_out if layout.precision == "int8" else [name_of(node) for node in model.graph.node]
    if not wanted or layout.runtime == "onnxruntime":
        return made, {}
    kept = {name: why for name, why in needs_fp32(model, maxima, minima).items() if name in wanted}
    half = [name for name in wanted if name not in kept]
    return (in_fp16(made, half) if half else made), kept


def parse_sqnr(text: str) -> float:
    """Turn "30dB" into 30.0. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*d[bB]", text.strip())
    if found is None:
        raise InputError(f"`--min-sqnr {text}` is not a number of decibels.\nWrite it as 30dB.")
    return float(found[1])


def within_budget(
    model: ModelProto,
    ranges: Mapping[str, float],
    maxima: Mapping[str, float],
    *,
    runs: Sequence[Feeds],
    judge: Callable[[Iterable[Feeds]], Score],
    max_drop: Allowed,
    layout: Layout | None = None,
    tune: Tune | None = None,
    progress: Progress = silent,
) -> tuple[ModelProto, Verdict]:
    """Return the graph with the fewest layers left out whose metric drops by at most `max_drop`.

    runs: of all images; the first of them rank the layers. judge: from the outputs of each run to the metric. layout:
    see `quantised_graph`.
    Raises GateError (exit 1) if no INT8 is within the budget, and says what FP16 loses.
    """
    return _DropBudget(model, ranges, maxima, layout, runs, judge, max_drop, progress).found(tune)


def within_sqnr(
    model: ModelProto,
    ranges: Mapping[str, float],
    maxima: Mapping[str, float],
    *,
    runs: Sequence[Feeds],
    min_sqnr_db: float,
    layout: Layout | None = None,
    tune: Tune | None = None,
    progress: Progress = silent,
) -> tuple[ModelProto, Verdict]:
    """Return the graph with the fewest layers left out of which every float output keeps `min_sqnr_db` on all runs.

    Raises GateError (exit 1) if no INT8 is within the budget, and says what FP16 keeps; InputError (exit 2) for a
    network without a float output.
    """
    return _SqnrBudget(model, ranges, maxima, layout, runs, min_sqnr_db, progress).found(tune)


def ranked(
    model: ModelProto,
    ranges: Mapping[str, float],
    *,
    runs: Sequence[Feeds],
    leave_out: Collection[str] = (),
    layout: Layout | None = None,
    progress: Progress = silent,
) -> tuple[Sensitivity, ...]:
    """Return what INT8 in each layer alone leaves of the float outputs on all runs, the most sensitive layer first.

    leave_out: layers that are not ranked.
    """
    return _Search(model, ranges, {}, layout, runs, progress).ranking(leave_out)


class _Search:
    """One search for the fewest layers to leave out: every set of layers is measured once."""

    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        layout: Layout | None,
        ranked_on: Sequence[Feeds],
        progress: Progress,
    ) -> None:
        from msn_deploy.quant.layout import TENSORRT

        self.model, self.ranges, self.maxima, self.progress = model, ranges, maxima, progress
        self.layout, self.ranked_on = layout or TENSORRT, ranked_on

    def int8(self, left_out: Collection[str]) -> tuple[ModelProto, dict[str, str]]:
        """See `quantised_graph`."""
        return quantised_graph(self.model, self.ranges, self.maxima, left_out, self.layout)

    def found(self, tune: Tune | None) -> tuple[ModelProto, Verdict]:
        left_out, ranking = self.for_the_budget()
        if tune is not None:
            left_out = tune(left_out, self.fits)
        return self.result(left_out, ranking)

    def for_the_budget(self) -> tuple[tuple[str, ...], tuple[Sensitivity, ...]]:
        """Return the fewest layers to leave out, and the ranking that they were found by."""
        if self.fits(()):
            return (), ()
        ranking = self.ranking()
        order = [each.layer for each in ranking]
        count = self.fewest(order)
        if count == len(order):
            raise GateError(self.only_fp16(order))
        return self.pruned(order[:count]), ranking

    def fits(self, left_out: Collection[str]) -> bool:
        """Whether the graph with these layers left out is within the budget."""
        raise NotImplementedError

    def only_fp16(self, order: list[str]) -> str:
        """Say that INT8 is out of the question, and what FP16 would lose."""
        raise NotImplementedError

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        raise NotImplementedError

    def ranking(self, leave_out: Collection[str] = ()) -> tuple[Sensitivity, ...]:
        """Rank the layers by the SQNR of the outputs with that layer alone in INT8, the worst first."""
        from msn_deploy.quant.quantize import quantize

        truth = self.outputs(self.model, self.ranked_on)
        layers = self.layout.place(self.model).layers
        ranked = [layer for layer in layers if layer not in leave_out]
        found = []
        for done, layer in enumerate(ranked):
            others = [each for each in layers if each != layer]
            outputs = self.outputs(
                quantize(self.model, self.ranges, leave_out=others, layout=self.layout), self.ranked_on
            )
            found.append(Sensitivity(layer=layer, sqnr_db=worst_sqnr(truth, outputs)))
            self.progress(done + 1, len(ranked), "ranking layers")
        return tuple(sorted(found, key=lambda each: each.sqnr_db))

    def fewest(self, order: list[str]) -> int:
        """Return how many of the worst layers have to be left out; all of them if no number is enough."""
        low, high = 0, 1
        while high < len(order) and not self.fits(order[:high]):
            low, high = high, min(2 * high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(order[:middle]) else (middle, high)
        return high

    def pruned(self, left_out: list[str]) -> tuple[str, ...]:
        """Take back, the least sensitive first, what need not be left out."""
        kept = list(left_out)
        for layer in reversed(left_out if len(left_out) <= _MOST_PRUNED else []):
            without = [each for each in kept if each != layer]
            if without and self.fits(without):
                kept = without
        return tuple(kept)

    def half(self) -> ModelProto:
        """Return the graph in FP16, to say what INT8 is compared with."""
        from msn_deploy.quant.fp32_nodes import needs_fp32
        from msn_deploy.quant.precision import to_fp16

        return to_fp16(self.model, keep_fp32=needs_fp32(self.model, self.maxima))

    def outputs(self, graph: ModelProto, runs: Sequence[Feeds], note: str = "") -> dict[str, Array]:
        return joined(list(self.each_run(graph, runs, note)))

    def each_run(self, graph: ModelProto, runs: Sequence[Feeds], note: str = "") -> Iterator[Feeds]:
        runner = OrtRunner(made_model(Path("the graph"), graph, graph.SerializeToString()))
        for done, feeds in enumerate(runs, 1):
            yield runner.run(feeds)
            if note:
                self.progress(done, len(runs), f"measuring {note}")
        runner.close()


class _SqnrBudget(_Search):
    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        layout: Layout | None,
        runs: Sequence[Feeds],
        least_db: float,
        progress: Progress,
    ) -> None:
        super().__init__(model, ranges, maxima, layout, runs, progress)
        self.least_db = least_db
        self.truth = self.outputs(model, runs, "FP32")
        if not any(array.dtype.kind == "f" for array in self.truth.values()):
            raise InputError(f"no output is of floats ({', '.join(self.truth)}): there is no SQNR.\nLeave out layers.")
        self.sqnr: dict[frozenset[str], float] = {}

    def fits(self, left_out: Collection[str]) -> bool:
        return self._sqnr(left_out) >= self.least_db

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        graph, in_fp32 = self.int8(left_out)
        return graph, Verdict(
            kind="MIXED" if left_out else "INT8",
            left_out=tuple(left_out),
            in_fp32=in_fp32,
            samples=sum(map(rows_of, self.ranked_on)),
            ranking=ranking,
            sqnr_db=self._sqnr(left_out),
            min_sqnr_db=self.least_db,
        )

    def only_fp16(self, order: list[str]) -> str:
        best = self._sqnr(order[:-1]) if len(order) > 1 else self._sqnr(())
        found = (
            f"INT8 keeps {self._sqnr(()):.1f} dB of the worst output, and {best:.1f} dB with all layers "
            f"but one left out; {self.least_db:g} dB is asked for."
        )
        if self.layout.runtime == "onnxruntime":
            return f"verdict FP32: {found}\n{_NO_FP16}"
        fp16 = worst_sqnr(self.truth, self.outputs(self.half(), self.ranked_on, "FP16"))
        return (
            f"verdict FP16: {found} FP16 keeps {fp16:.1f} dB.\n"
            "Nothing was written. Take `build-engine --precision fp16`, other data, or another `--method`."
        )

    def _sqnr(self, left_out: Collection[str]) -> float:
        key = frozenset(left_out)
        if key not in self.sqnr:
            graph, _ = self.int8(left_out)
            note = f"INT8, {len(key)} layers left out" if key else "INT8"
            self.sqnr[key] = worst_sqnr(self.truth, self.outputs(graph, self.ranked_on, note))
        return self.sqnr[key]


class _DropBudget(_Search):
    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        layout: Layout | None,
        runs: Sequence[Feeds],
        judge: Callable[[Iterable[Feeds]], Score],
        max_drop: Allowed,
        progress: Progress,
    ) -> None:
        ranked_on = runs[: max(1, _RANKED // max(1, rows_of(runs[0])))]
        super().__init__(model, ranges, maxima, layout, ranked_on, progress)
        self.runs, self.judge = runs, judge
        self.fp32 = self._judged(model, "FP32")
        self.allowed = max_drop.of(self.fp32)
        self.scores: dict[frozenset[str], Score] = {}

    def fits(self, left_out: Collection[str]) -> bool:
        return drop_of(self.fp32, self._score(left_out)) <= self.allowed

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        score = self._score(left_out)
        graph, in_fp32 = self.int8(left_out)
        return graph, Verdict(
            kind="MIXED" if left_out else "INT8",
            left_out=tuple(left_out),
            in_fp32=in_fp32,
            samples=score.samples,
            ranking=ranking,
            metric=MetricDrop(
                name=score.metric,
                unit=score.unit,
                fp32=self.fp32.value,
                int8=score.value,
                drop=drop_of(self.fp32, score),
                interval=drop_interval(self.fp32, score),
                allowed=self.allowed,
            ),
        )

    def only_fp16(self, order: list[str]) -> str:
        int8, best = (self._worse(self._score(each)) for each in ((), order[:-1] if len(order) > 1 else ()))
        found = (
            f"INT8 makes {self.fp32.metric} worse by {int8}, and still by {best} with all layers but one "
            f"left out; {metric_text(self.allowed, self.fp32.unit)} is allowed."
        )
        if self.layout.runtime == "onnxruntime":
            return f"verdict FP32: {found}\n{_NO_FP16}"
        return (
            f"verdict FP16: {found} FP16 makes it worse by {self._worse(self._judged(self.half(), 'FP16'))}.\n"
            "Nothing was written. Take `build-engine --precision fp16`, other images, or another `--method`."
        )

    def _worse(self, score: Score) -> str:
        return metric_text(drop_of(self.fp32, score), score.unit)

    def _score(self, left_out: Collection[str]) -> Score:
        key = frozenset(left_out)
        if key not in self.scores:
            graph, _ = self.int8(left_out)
            self.scores[key] = self._judged(graph, f"INT8, {len(key)} layers left out" if key else "INT8")
        return self.scores[key]

    def _judged(self, graph: ModelProto, note: str) -> Score:
        return self.judge(self.each_run(graph, self.runs, note))


def worst_sqnr(truth: Feeds, outputs: Feeds) -> float:
    """Return the SQNR of the float output that has the lowest, dB."""
    from msn_deploy.model.parity import rung

    floats = {name: array for name, array in truth.items() if array.dtype.kind == "f"}
    return rung("int8", floats, outputs).sqnr_db
