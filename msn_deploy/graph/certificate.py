"""The fold certificate: what became of every norm of a network, and by how much its outputs moved in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from msn_deploy.graph.evaluate import Values, values_float64
from msn_deploy.graph.fold import FoldedGraph, NormFold
from msn_deploy.model.opened import inputs_of, only_input

INPUTS = ("normal", "lit corners")
_LARGEST = 1e-9  # difference in float64 that is still rounding, times the largest value where that is above 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedNorm:
    """One norm: its rule, and what proves it.

    norm, operator, rule, code, why: see NormFold; a layer that normalises its own weight has the rule "into-weight".
    sigma: that its weight was divided by, sigma_svd: the largest singular value; None for norms without one.
    difference: largest absolute one in float64 on INPUTS, of values as large as `of`; None for a norm that was kept.
    """

    norm: str
    operator: str
    rule: str
    code: str = ""
    why: str = ""
    sigma: float | None = None
    sigma_svd: float | None = None
    difference: float | None = None
    of: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What `export` did to the norms of a network, and to its output.

    pooled_first: tensors whose average pooling was moved. inputs: what was run.
    """

    norms: tuple[CertifiedNorm, ...]
    output: CertifiedNorm
    pooled_first: tuple[str, ...] = ()
    inputs: tuple[str, ...] = INPUTS

    @property
    def kept(self) -> list[CertifiedNorm]:
        """The norms that could not be folded."""
        return [norm for norm in self.norms if norm.rule == "kept"]

    @property
    def worst(self) -> CertifiedNorm:
        """The norm (or the output) whose values moved most, relative to them."""
        return max((norm for norm in (*self.norms, self.output) if norm.rule != "kept"), key=_relative)

    @property
    def is_exact(self) -> bool:
        """Whether no difference is more than rounding in float64."""
        return _relative(self.worst) <= _LARGEST


def _relative(norm: CertifiedNorm) -> float:
    return (norm.difference or 0.0) / max(1.0, norm.of or 0.0)


def certify(folded: FoldedGraph, layers: Sequence[CertifiedNorm] = ()) -> Certificate:
    """Run the graph before and after its folds in float64 and compare what should be the same.

    layers: norms that were folded before the graph was exported. Raises InputError if the graph can't be evaluated.
    """
    name = str(folded.before.graph.outputs[0].name)
    same = {name, *(each for fold in folded.folds for each in fold.same)}
    before, after = values_float64([folded.before, folded.after], edge_batches(folded.model), same)
    norms = [_certified(fold, before, after) for fold in folded.folds]
    whole = NormFold(norm=name, operator="the whole graph", rule="output", same=(name,))
    return Certificate(
        norms=(*layers, *norms), output=_certified(whole, before, after), pooled_first=folded.pooled_first
    )


def _certified(fold: NormFold, before: list[Values], after: list[Values]) -> CertifiedNorm:
    difference = of = None
    if fold.rule != "kept":
        pairs = [(a[name], b[name]) for a, b in zip(before, after, strict=True) for name in fold.same]
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        of = max(float(np.abs(a).max()) for a, _ in pairs)
    return CertifiedNorm(
        norm=fold.norm,
        operator=fold.operator,
        rule=fold.rule,
        code=fold.code,
        why=fold.why,
        difference=difference,
        of=of,
    )


def edge_batches(model: onnx.ModelProto) -> list[NDArray[np.float64]]:
    """Return INPUTS in batches that the graph takes: numbers, and ones (which show borders) with lit corners."""
    _, shape = only_input(inputs_of(model), source="the graph")
    sizes = tuple(1 if size is None else size for size in shape[1:])
    images = np.ones((len(INPUTS), *sizes))
    images[0] = np.random.default_rng(0).standard_normal(sizes)
    grid = np.ix_(*([range(sizes[0])] + [sorted({0, size - 1}) for size in sizes[1:]]))
    images[1][grid] = 100.0
    batch = shape[0] or len(INPUTS)
    count = -(-len(INPUTS) // batch) * batch
    repeated = np.concatenate([images] * -(-count // len(INPUTS)))[:count]
    return [repeated[start : start + batch] for start in range(0, count, batch)]
