"""How good are generated images? Judged by a classifier of ours, on its own features: no weights to download.

The numbers are like those that an Inception network gives (FID, Heusel et al., 2017, arXiv 1706.08500; Inception Score,
Salimans et al., 2016, arXiv 1606.03498) and can't be compared with them: another network looks. They compare generators
that the same classifier has judged, and each with real images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msn_deploy.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What a classifier sees in some images."""

    confidence: float
    """Mean probability of the likeliest class, 0 to 1."""
    image_entropy: float
    """Mean entropy of an image's class probabilities, in nats: low for images that are clearly something."""
    class_entropy: float
    """Entropy of the mean probabilities, at most log(classes): high where all classes occur."""
    score: float
    """exp(class_entropy - image_entropy), as the Inception Score."""


@torch.inference_mode()
def look(model: nn.Module, batch: NDArray[np.float32], *, chunk: int = 256) -> tuple[Looks, NDArray[np.float64]]:
    """Show a classifier's input batch (N, C, H, W) to it; return what it sees and its features (N, F).

    Features are what its last linear layer reads. Raises InputError if it has none.
    """
    last = next((layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear)), None)
    if last is None:
        raise InputError("the judge has no linear layer, whose input could serve as features.")
    features: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].double().cpu()))
    try:
        model.eval()
        logits = torch.cat([model(part).double() for part in torch.split(torch.from_numpy(batch), chunk)])
    finally:
        hook.remove()
    logs = torch.log_softmax(logits, 1)
    shares = logs.exp()
    mean = shares.mean(0)
    image_entropy = float(-(shares * logs).sum(1).mean())
    class_entropy = float(-(mean * mean.clamp_min(1e-300).log()).sum())
    looks = Looks(
        confidence=float(shares.max(1).values.mean()),
        image_entropy=image_entropy,
        class_entropy=class_entropy,
        score=float(np.exp(class_entropy - image_entropy)),
    )
    return looks, torch.cat(features).numpy()


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the squared Frechet distance of Gaussians with the mean and covariance of two samples (N, F), (M, F).

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)); the root's trace is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is
    symmetric. Raises InputError for fewer than two samples.
    """
    if min(len(first), len(second)) < 2:
        raise InputError("a covariance needs at least two images of each kind.")
    means = first.mean(0) - second.mean(0)
    one, other = (np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return max(0.0, float(means @ means + np.trace(one) + np.trace(other) - 2 * cross))
