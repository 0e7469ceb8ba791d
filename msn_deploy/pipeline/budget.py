"""How much of a network can be INT8 before its accuracy drops, or its outputs differ, by more than is allowed?

Layers are ranked by what INT8 in that layer alone does to the outputs (SQNR), and the worst are left in FP16, as few of
them as the budget allows: one of accuracy for a classifier, one of SQNR for any other network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data.feeds import ImageSamples, runs_of
from msn_deploy.engine import OrtRunner
from msn_deploy.model.feeds import Array, Feeds, joined, rows_of
from msn_deploy.model.opened import inputs_of, made_model

if TYPE_CHECKING:
    from onnx import ModelProto

CHUNK = 32  # samples per run of an open batch
_RANKED = 256  # images that rank the layers
_MOST_PRUNED = 16  # layers left out that are tried one by one: each costs a run over all images
_Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What INT8 in this layer alone leaves of the outputs: their power over that of the error, in decibels."""

    layer: str
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the budget came to.

    kind: "INT8" (all layers), "MIXED" (left_out stay in FP16; of those, in_fp32 in FP32, for FP16 is not enough).
    ranking: the most sensitive layer first; empty where INT8 was good enough. accuracy: of a budget of accuracy.
    sqnr_db, min_sqnr_db: of a budget of SQNR, that of the worst float output and what was asked for.
    """

    kind: Literal["INT8", "MIXED"]
    left_out: tuple[str, ...]
    in_fp32: dict[str, str]
    samples: int
    ranking: tuple[Sensitivity, ...]
    accuracy: Accuracy | None = None
    sqnr_db: float | None = None
    min_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """fp32, int8: 0 to 1, on the same images. drop: their difference; interval: its 95 % interval, paired; allowed."""

    fp32: float
    int8: float
    drop: float
    interval: tuple[float, float]
    allowed: float


def parse_drop(text: str) -> float:
    """Turn "0.5pp", percentage points of accuracy, into 0.005. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*pp", text.strip())
    if found is None or float(found[1]) >= 100:
        raise InputError(f"`--max-drop {text}` is not a number of percentage points.\nWrite it as 0.5pp.")
    return float(found[1]) / 100


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


def int8_graph(
    model: ModelProto, ranges: Mapping[str, float], maxima: Mapping[str, float], left_out: Collection[str]
) -> tuple[ModelProto, dict[str, str]]:
    """Return the INT8 graph whose `left_out` layers work in FP16, and those of them that stay in FP32, with the reason.

    ranges: of what is quantised; maxima: largest magnitudes of all activations, which FP16 has to hold.
    """
    from msn_deploy.quant.fp32_nodes import needs_fp32
    from msn_deploy.quant.precision import in_fp16
    from msn_deploy.quant.quantize import quantize

    int8 = quantize(model, ranges, leave_out=left_out)
    if not left_out:
        return int8, {}
    kept = {name: why for name, why in needs_fp32(model, maxima).items() if name in left_out}
    half = [name for name in left_out if name not in kept]
    return (in_fp16(int8, half) if half else int8), kept


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
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    max_drop: float,
    answer: Callable[[Array], NDArray[np.int64]] = lambda logits: logits.argmax(1),
    progress: Progress = silent,
) -> tuple[ModelProto, Verdict]:
    """Return the graph with the fewest layers left out whose accuracy on `images` drops by at most `max_drop`.

    images: (N, C, H, W), preprocessed; the first of them rank the layers. max_drop: a share, 0.005 for half a point.
    answer: from the output to the index of the class, (N,).
    Raises GateError (exit 1) if no INT8 is within the budget, and says what FP16 loses.
    """
    return _DropBudget(model, ranges, maxima, images, labels, max_drop, answer, progress).found()


def within_sqnr(
    model: ModelProto,
    ranges: Mapping[str, float],
    maxima: Mapping[str, float],
    *,
    runs: Sequence[Feeds],
    min_sqnr_db: float,
    progress: Progress = silent,
) -> tuple[ModelProto, Verdict]:
    """Return the graph with the fewest layers left out of which every float output keeps `min_sqnr_db` on all runs.

    Raises GateError (exit 1) if no INT8 is within the budget, and says what FP16 keeps; InputError (exit 2) for a
    network without a float output.
    """
    return _SqnrBudget(model, ranges, maxima, runs, min_sqnr_db, progress).found()


class _Search:
    """One search for the fewest layers to leave out: every set of layers is measured once."""

    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        ranked_on: Sequence[Feeds],
        progress: Progress,
    ) -> None:
        self.model, self.ranges, self.maxima, self.progress = model, ranges, maxima, progress
        self.ranked_on = ranked_on

    def found(self) -> tuple[ModelProto, Verdict]:
        if self.fits(()):
            return self.result((), ())
        ranking = self.ranking()
        order = [each.layer for each in ranking]
        count = self.fewest(order)
        if count == len(order):
            raise GateError(self.only_fp16(order))
        return self.result(self.pruned(order[:count]), ranking)

    def fits(self, left_out: Collection[str]) -> bool:
        """Whether the graph with these layers left out is within the budget."""
        raise NotImplementedError

    def only_fp16(self, order: list[str]) -> str:
        """Say that INT8 is out of the question, and what FP16 would lose."""
        raise NotImplementedError

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        raise NotImplementedError

    def ranking(self) -> tuple[Sensitivity, ...]:
        """Rank the layers by the SQNR of the outputs with that layer alone in INT8, the worst first."""
        from msn_deploy.quant.placement import place
        from msn_deploy.quant.quantize import quantize

        truth = self.outputs(self.model, self.ranked_on)
        layers = place(self.model).layers
        found = []
        for done, layer in enumerate(layers):
            others = [each for each in layers if each != layer]
            outputs = self.outputs(quantize(self.model, self.ranges, leave_out=others), self.ranked_on)
            found.append(Sensitivity(layer=layer, sqnr_db=worst_sqnr(truth, outputs)))
            self.progress(done + 1, len(layers), "ranking layers")
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
        runner = OrtRunner(made_model(Path("the graph"), graph, graph.SerializeToString()))
        made = []
        for done, feeds in enumerate(runs, 1):
            made.append(runner.run(feeds))
            if note:
                self.progress(done, len(runs), f"measuring {note}")
        runner.close()
        return joined(made)


class _SqnrBudget(_Search):
    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        runs: Sequence[Feeds],
        least_db: float,
        progress: Progress,
    ) -> None:
        super().__init__(model, ranges, maxima, runs, progress)
        self.least_db = least_db
        self.truth = self.outputs(model, runs, "FP32")
        if not any(array.dtype.kind == "f" for array in self.truth.values()):
            raise InputError(f"no output is of floats ({', '.join(self.truth)}): there is no SQNR.\nLeave out layers.")
        self.sqnr: dict[frozenset[str], float] = {}

    def fits(self, left_out: Collection[str]) -> bool:
        return self._sqnr(left_out) >= self.least_db

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        graph, in_fp32 = int8_graph(self.model, self.ranges, self.maxima, left_out)
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
        fp16 = worst_sqnr(self.truth, self.outputs(self.half(), self.ranked_on, "FP16"))
        return (
            f"verdict FP16: INT8 keeps {self._sqnr(()):.1f} dB of the worst output, and {best:.1f} dB with all layers "
            f"but one left out; {self.least_db:g} dB is asked for. FP16 keeps {fp16:.1f} dB.\n"
            "Nothing was written. Take `build-engine --precision fp16`, other data, or another `--method`."
        )

    def _sqnr(self, left_out: Collection[str]) -> float:
        key = frozenset(left_out)
        if key not in self.sqnr:
            graph, _ = int8_graph(self.model, self.ranges, self.maxima, left_out)
            note = f"INT8, {len(key)} layers left out" if key else "INT8"
            self.sqnr[key] = worst_sqnr(self.truth, self.outputs(graph, self.ranked_on, note))
        return self.sqnr[key]


class _DropBudget(_Search):
    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        max_drop: float,
        answer: Callable[[Array], NDArray[np.int64]],
        progress: Progress,
    ) -> None:
        (spec,) = inputs_of(model)
        samples = ImageSamples(spec.name, images)
        self.runs = list(runs_of(samples, [spec], samples.rows, most=CHUNK))
        ranked = max(1, _RANKED // max(1, rows_of(self.runs[0])))
        super().__init__(model, ranges, maxima, self.runs[:ranked], progress)
        self.labels, self.max_drop, self.answer = labels, max_drop, answer
        self.right_fp32 = self._is_right(model, "FP32")
        self.right: dict[frozenset[str], NDArray[np.bool_]] = {}

    def fits(self, left_out: Collection[str]) -> bool:
        return paired_drop(self.right_fp32, self._right(left_out))[0] <= self.max_drop

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        right = self._right(left_out)
        drop, interval = paired_drop(self.right_fp32, right)
        graph, in_fp32 = int8_graph(self.model, self.ranges, self.maxima, left_out)
        return graph, Verdict(
            kind="MIXED" if left_out else "INT8",
            left_out=tuple(left_out),
            in_fp32=in_fp32,
            samples=len(right),
            ranking=ranking,
            accuracy=Accuracy(
                fp32=float(self.right_fp32.mean()),
                int8=float(right.mean()),
                drop=drop,
                interval=interval,
                allowed=self.max_drop,
            ),
        )

    def only_fp16(self, order: list[str]) -> str:
        fp16 = paired_drop(self.right_fp32, self._is_right(self.half(), "FP16"))[0]
        int8 = paired_drop(self.right_fp32, self._right(()))[0]
        best = paired_drop(self.right_fp32, self._right(order[:-1]))[0] if len(order) > 1 else int8
        return (
            f"verdict FP16: INT8 drops accuracy by {int8:.2%}, and still by {best:.2%} with all layers but one left "
            f"out; {self.max_drop:.2%} is allowed. FP16 drops it by {fp16:.2%}.\n"
            "Nothing was written. Take `build-engine --precision fp16`, other images, or another `--method`."
        )

    def _right(self, left_out: Collection[str]) -> NDArray[np.bool_]:
        key = frozenset(left_out)
        if key not in self.right:
            graph, _ = int8_graph(self.model, self.ranges, self.maxima, left_out)
            self.right[key] = self._is_right(graph, f"INT8, {len(key)} layers left out" if key else "INT8")
        return self.right[key]

    def _is_right(self, graph: ModelProto, note: str) -> NDArray[np.bool_]:
        (logits,) = self.outputs(graph, self.runs, note).values()
        right: NDArray[np.bool_] = (
            self.answer(logits[: len(self.labels)]) == self.labels
        )  # the last run may be filled up
        return right


def worst_sqnr(truth: Feeds, outputs: Feeds) -> float:
    """Return the SQNR of the float output that has the lowest, dB."""
    from msn_deploy.model.parity import rung

    floats = {name: array for name, array in truth.items() if array.dtype.kind == "f"}
    return rung("int8", floats, outputs).sqnr_db
