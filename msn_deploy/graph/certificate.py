"""The fold certificate: what became of every norm of a network, and by how much its outputs moved in float64.

Norms of the graph are proved by the graph before and after the fold; layers that normalise their own weight (MSN, SN,
torch's), which are folded before the graph is exported, by each layer and its plain twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from msn_deploy.graph.affine import shape_of
from msn_deploy.graph.evaluate import ROUNDING, apart, values_float64
from msn_deploy.graph.fold import FoldedGraph, NormFold, Rule
from msn_deploy.graph.rules import Code
from msn_deploy.model.feeds import BATCH, Array, ExampleInput, Feeds, random_feeds
from msn_deploy.msn.plain import FoldedLayer, copied, fold_layers, raw_weight
from msn_deploy.msn.spectral import as_matrix, largest_singular_value

INPUTS = ("normal", "lit corners")
_LARGE = 1 << 16  # numbers of all inputs in a row, above which one run has to do
_Moved = tuple[float, float, bool]  # difference, largest value, and whether it is coarse
_ROUNDING_OF_FLOAT32 = 1e-4  # as much of the largest value as the parity of float32 outputs allows


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedNorm:
    """One norm: its rule, and what proves it.

    norm, operator, rule, code, why: see NormFold; a layer that normalises its own weight has the rule "into-weight".
    """

    norm: str
    operator: str
    rule: Rule
    code: Code = ""
    why: str = ""
    sigma: float | None = None
    """What its weight was divided by; None for norms without one."""
    sigma_svd: float | None = None
    """The largest singular value."""
    difference: float | None = None
    """Largest absolute difference in float64 on INPUTS; None for a norm that was kept."""
    of: float | None = None
    """Largest absolute value that differs by it."""
    coarse: bool = False
    """Whether the rounding of float32 may be in the difference (see Certificate.in_float32)."""

    @property
    def sigma_error(self) -> float:
        """By how much sigma is off, as a share of the largest singular value; 0 for norms without one."""
        return abs(self.sigma / self.sigma_svd - 1) if self.sigma and self.sigma_svd else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What `export` did to the norms of a network, and to its output."""

    norms: tuple[CertifiedNorm, ...]
    output: CertifiedNorm
    pooled_first: tuple[str, ...] = ()
    """Tensors whose average pooling was moved."""
    inputs: tuple[str, ...] = INPUTS
    """What was run; "data" are rows of what the stages were compared on."""
    in_float32: tuple[str, ...] = ()
    """Names of the nodes that could be computed in float32 only."""

    @property
    def kept(self) -> list[CertifiedNorm]:
        """The norms that could not be folded."""
        return [norm for norm in self.norms if norm.rule == "kept"]

    @property
    def worst(self) -> CertifiedNorm:
        """The norm (or the output) whose values moved most, as a share of what is still rounding."""
        return max((norm for norm in (*self.norms, self.output) if norm.rule != "kept"), key=_share)

    @property
    def worst_sigma(self) -> CertifiedNorm | None:
        """The norm whose sigma is furthest off; None if none has a sigma.

        The fold takes sigma as it is, for that is the network that was trained.
        """
        with_sigma = [norm for norm in self.norms if norm.sigma_svd is not None]
        return max(with_sigma, key=lambda norm: norm.sigma_error, default=None)

    @property
    def is_exact(self) -> bool:
        """Whether no difference is more than rounding in float64, or in float32 behind what has no float64."""
        return _share(self.worst) <= 1


def _share(norm: CertifiedNorm) -> float:
    """Return the difference as a share of what is still rounding."""
    allowed = _ROUNDING_OF_FLOAT32 if norm.coarse else ROUNDING
    return (norm.difference or 0.0) / (allowed * max(1.0, norm.of or 0.0))


def certify(
    folded: FoldedGraph,
    inputs: Sequence[ExampleInput] | None = None,
    layers: Sequence[CertifiedNorm] = (),
    *,
    data: Feeds | None = None,
) -> Certificate:
    """Run the graph before and after its folds in float64 and compare what should be the same.

    inputs: with the sizes to run the graph with; None: 1 for what it leaves open. layers: norms that were
    folded before the graph was exported. data: one run's inputs, in place of INPUTS, for a network that needs such.
    Raises InputError if the graph can't be evaluated.
    """
    outputs = [str(output.name) for output in folded.before.graph.outputs]
    same = {*outputs, *(each for fold in folded.folds for each in fold.same)}
    if data is not None:
        feeds = [{name: each.astype(np.float64) if each.dtype.kind == "f" else each for name, each in data.items()}]
    else:
        feeds = edge_feeds(_inputs_of(folded) if inputs is None else inputs)
    moved: dict[str, list[_Moved]] = {}
    in_float32: set[str] = set()
    for found in values_float64([folded.before, folded.after], feeds, same):
        difference, of = apart(*found.values) if found.values else (0.0, 0.0)
        moved.setdefault(found.name, []).append((difference, of, found.coarse))
        in_float32 |= found.in_float32
    norms = [_certified(fold, moved) for fold in folded.folds]
    wholes = [NormFold(norm=name, operator="the whole graph", rule="output", same=(name,)) for name in outputs]
    return Certificate(
        norms=(*layers, *norms),
        output=max((_certified(whole, moved) for whole in wholes), key=_share),
        pooled_first=folded.pooled_first,
        inputs=INPUTS if data is None else ("data",),
        in_float32=tuple(sorted(in_float32)),
    )


def _certified(fold: NormFold, moved: Mapping[str, Sequence[_Moved]]) -> CertifiedNorm:
    difference = of = None
    coarse = False
    if fold.rule != "kept":
        found = [each for name in fold.same for each in moved[name]]
        difference, of, coarse = (max(each) for each in zip(*found, strict=True))
    return CertifiedNorm(
        norm=fold.norm,
        operator=fold.operator,
        rule=fold.rule,
        code=fold.code,
        why=fold.why,
        difference=difference,
        of=of,
        coarse=bool(coarse),
    )


def _inputs_of(folded: FoldedGraph) -> list[ExampleInput]:
    found = []
    for value in folded.before.graph.inputs:
        sizes = shape_of(value)
        dtype = "float32" if value.dtype in (None, ir.DataType.DOUBLE) else value.dtype.numpy().name
        sizes = tuple(size if size is not None and size > 0 else None for size in sizes)  # older files have 0 or -1
        names = tuple(None if size else (f"size {at}" if at else BATCH) for at, size in enumerate(sizes))
        shape = tuple(size or 1 for size in sizes)
        found.append(ExampleInput(name=str(value.name), dtype=dtype, shape=shape, open=names))
    return found


def edge_feeds(inputs: Sequence[ExampleInput]) -> list[dict[str, Array]]:
    """Return runs in which inputs of floats are INPUTS row by row: numbers, and ones (for borders) with lit corners.

    An open batch has a row for each. Large inputs have both in one row: numbers, ones at the right, and lit corners.
    Other types get random numbers, see `random_feeds`.
    """
    is_large = sum(int(np.prod(each.shape[1:])) for each in inputs) > _LARGE
    wanted = 1 if is_large else len(INPUTS)
    sized = [each.sized({BATCH: wanted}) for each in inputs]
    rows = (sized[0].shape or (1,))[0]
    feeds = []
    for at in range(-(-wanted // rows)):
        feed = random_feeds(sized, seed=at)
        for each in (each for each in sized if each.dtype.startswith("float") and each.shape):
            array = np.array(feed[each.name], dtype=np.float64)
            ends = [sorted({0, size - 1}) for size in each.shape[1:]]
            corners = ends if is_large and len(ends) == 1 else [range(size) for size in each.shape[1:2]] + ends[1:]
            lit = range(0 if is_large else (at + 1) % 2, len(array), 1 if is_large else 2)
            ones = array[lit.start :: lit.step]
            ones[..., ones.shape[-1] // 2 if is_large else 0 :] = 1.0
            array[np.ix_(lit, *corners)] = 100.0
            feed[each.name] = array
        feeds.append(feed)
    return feeds


@torch.no_grad()
def certify_layers(layers: Sequence[FoldedLayer]) -> list[CertifiedNorm]:
    """Compare every layer with its plain twin in float64, and its sigma with the largest singular value."""
    return [_certified_layer(layer) for layer in layers]


def _certified_layer(layer: FoldedLayer) -> CertifiedNorm:
    before = copied(layer.before).double().eval()
    after, _ = fold_layers(before)
    x, raw = _layer_inputs(before), raw_weight(before)
    expected, got = before(x), after(x)
    return CertifiedNorm(
        norm=layer.name,
        operator=layer.kind,
        rule="into-weight",
        sigma=layer.sigma,
        sigma_svd=None if layer.sigma is None or raw is None else _sigma_svd(raw, before),
        difference=float((expected - got).abs().max()),
        of=float(expected.abs().max()),
    )


def _sigma_svd(raw: Tensor, layer: nn.Module) -> float:
    is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return largest_singular_value(as_matrix(raw, transposed=is_transposed))


def _layer_inputs(layer: nn.Module) -> Tensor:
    """Return normal numbers, ones, and a lit first pixel, just large enough for the layer's kernel."""
    if isinstance(layer, nn.Linear):
        sizes = [layer.in_features]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        spans = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        sizes = [layer.in_channels, *(dilation * (width - 1) + 2 * stride + 1 for width, dilation, stride in spans)]
    else:
        raise TypeError(f"{type(layer).__name__} does not normalise its own weight")
    x = torch.zeros(3, *sizes, dtype=torch.float64)
    x[0] = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = 1.0
    x[2].view(sizes[0], -1)[:, 0] = 100.0
    return x
