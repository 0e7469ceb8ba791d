"""The certificate of layers that normalise their own weight (MSN, SN, torch's): folded before the graph is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msn_deploy.graph.certificate import CertifiedNorm
from msn_deploy.msn.plain import FoldedLayer, copied, fold_layers, raw_weight


@torch.no_grad()
def certify_layers(layers: Sequence[FoldedLayer]) -> list[CertifiedNorm]:
    """Compare every layer with its plain twin in float64, and its sigma with the largest singular value."""
    return [_certified(layer) for layer in layers]


def _certified(layer: FoldedLayer) -> CertifiedNorm:
    before = copied(layer.before).double().eval()
    after, _ = fold_layers(before)
    x = _edge_inputs(before)
    expected, got = before(x), after(x)
    return CertifiedNorm(
        norm=layer.name,
        operator=layer.kind,
        rule="into-weight",
        sigma=layer.sigma,
        sigma_svd=None if layer.sigma is None else _largest_singular_value(before),
        difference=float((expected - got).abs().max()),
        of=float(expected.abs().max()),
    )


def _largest_singular_value(layer: nn.Module) -> float:
    """Of the raw weight as (C_out, ...), by the eigenvalues of the smaller Gram matrix."""
    raw = raw_weight(layer)
    assert raw is not None
    is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    matrix = (raw.transpose(0, 1) if is_transposed else raw).flatten(1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


def _edge_inputs(layer: nn.Module) -> Tensor:
    """Return normal numbers, ones, and a lit first pixel, just large enough for the layer's kernel."""
    if isinstance(layer, nn.Linear):
        sizes = [layer.in_features]
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        spans = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        sizes = [layer.in_channels, *(dilation * (width - 1) + 2 * stride + 1 for width, dilation, stride in spans)]
    x = torch.zeros(3, *sizes, dtype=torch.float64)
    x[0] = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = 1.0
    x[2].view(sizes[0], -1)[:, 0] = 100.0
    return x
