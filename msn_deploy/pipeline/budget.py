"""How much of a network can be INT8 before its accuracy drops by more than is allowed?

Layers are ranked by what INT8 in that layer alone does to the logits (SQNR), and the worst are left in FP16, as few of
them as the measured accuracy allows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import made_model

if TYPE_CHECKING:
    from onnx import ModelProto

_CHUNK = 256
_MOST_PRUNED = 16  # layers left out that are tried one by one: each costs a run over all images
_Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What INT8 in this layer alone leaves of the logits: their power over that of the error, in decibels."""

    layer: str
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the budget came to.

    kind: "INT8" (all layers), "MIXED" (left_out stay in FP16; of those, in_fp32 in FP32, for FP16 would overflow).
    accuracy_fp32, accuracy: 0 to 1, on the same `samples` images. drop: their difference; interval: its 95 % interval,
    paired. max_drop: what was allowed. ranking: the most sensitive layer first; empty where INT8 was good enough.
    """

    kind: str
    left_out: tuple[str, ...]
    in_fp32: dict[str, str]
    samples: int
    accuracy_fp32: float
    accuracy: float
    drop: float
    interval: tuple[float, float]
    max_drop: float
    ranking: tuple[Sensitivity, ...]


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


def within_budget(
    model: ModelProto,
    ranges: Mapping[str, float],
    maxima: Mapping[str, float],
    *,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    max_drop: float,
    progress: Progress = silent,
) -> tuple[ModelProto, Verdict]:
    """Return the graph with the fewest layers left out whose accuracy on `images` drops by at most `max_drop`.

    images: (N, C, H, W), preprocessed; the first of them rank the layers. max_drop: a share, 0.005 for half a point.
    Raises GateError (exit 1) if no INT8 is within the budget, and says what FP16 loses.
    """
    budget = _Budget(model, ranges, maxima, images, labels, max_drop, progress)
    if budget.fits(()):
        return budget.result((), ())
    ranking = budget.ranking()
    order = [each.layer for each in ranking]
    count = budget.fewest(order)
    if count == len(order):
        raise GateError(budget.only_fp16(order))
    left_out = budget.pruned(order[:count])
    return budget.result(left_out, ranking)


class _Budget:
    """One search: every set of layers is measured once."""

    def __init__(
        self,
        model: ModelProto,
        ranges: Mapping[str, float],
        maxima: Mapping[str, float],
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        max_drop: float,
        progress: Progress,
    ) -> None:
        self.model, self.ranges, self.maxima = model, ranges, maxima
        self.images, self.labels, self.max_drop, self.progress = images, labels, max_drop, progress
        self.right_fp32 = self._logits(model, images, "FP32").argmax(1) == labels
        self.right: dict[frozenset[str], NDArray[np.bool_]] = {}

    def fits(self, left_out: Collection[str]) -> bool:
        """Whether the drop with these layers left out is within the budget."""
        return paired_drop(self.right_fp32, self._right(left_out))[0] <= self.max_drop

    def ranking(self) -> tuple[Sensitivity, ...]:
        """Rank the layers by the SQNR of the logits with that layer alone in INT8, the worst first."""
        from msn_deploy.model.parity import rung
        from msn_deploy.quant.placement import place
        from msn_deploy.quant.quantize import quantize

        images = self.images[:_CHUNK]
        truth = self._logits(self.model, images)
        layers = place(self.model).layers
        found = []
        for done, layer in enumerate(layers):
            others = [each for each in layers if each != layer]
            logits = self._logits(quantize(self.model, self.ranges, leave_out=others), images)
            found.append(Sensitivity(layer=layer, sqnr_db=rung("int8", {layer: truth}, {layer: logits}).sqnr_db))
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

    def result(self, left_out: Collection[str], ranking: tuple[Sensitivity, ...]) -> tuple[ModelProto, Verdict]:
        right = self._right(left_out)
        drop, interval = paired_drop(self.right_fp32, right)
        graph, in_fp32 = int8_graph(self.model, self.ranges, self.maxima, left_out)
        return graph, Verdict(
            kind="MIXED" if left_out else "INT8",
            left_out=tuple(left_out),
            in_fp32=in_fp32,
            samples=len(right),
            accuracy_fp32=float(self.right_fp32.mean()),
            accuracy=float(right.mean()),
            drop=drop,
            interval=interval,
            max_drop=self.max_drop,
            ranking=ranking,
        )

    def only_fp16(self, order: list[str]) -> str:
        """Say that INT8 is out of the question, and what FP16 would lose."""
        from msn_deploy.quant.fp32_nodes import needs_fp32
        from msn_deploy.quant.precision import to_fp16

        half = to_fp16(self.model, keep_fp32=needs_fp32(self.model, self.maxima))
        fp16 = paired_drop(self.right_fp32, self._logits(half, self.images, "FP16").argmax(1) == self.labels)[0]
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
            note = f"INT8, {len(key)} layers left out" if key else "INT8"
            self.right[key] = self._logits(graph, self.images, note).argmax(1) == self.labels
        return self.right[key]

    def _logits(self, graph: ModelProto, images: NDArray[np.float32], note: str = "") -> NDArray[np.float32]:
        runner = OrtRunner(made_model(Path("the graph"), graph, graph.SerializeToString()))
        parts = []
        for start in range(0, len(images), _CHUNK):
            parts.append(run_images(runner, images[start : start + _CHUNK]))
            if note:
                self.progress(min(start + _CHUNK, len(images)), len(images), f"measuring {note}")
        runner.close()
        return np.concatenate(parts)
