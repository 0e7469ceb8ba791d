"""A BatchNorm that holds its activation, as timm's BatchNormAct2d: what is left of it when the norm is gone."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_RANKS: dict[Any, int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}  # of the images that a norm takes
_INSIDE = ("drop", "act")


def left_behind(norm: _BatchNorm) -> nn.Module | None:
    """Return what a norm computes behind the norm: an Identity for torch's own, None if it computes something else.

    A subclass counts as act(drop(norm(x))) if it holds modules of these two names and no others, and computes that bit
    for bit on random numbers, in training as in evaluation, its statistics included.
    """
    base: Any = next((kind for kind in (*_RANKS, nn.SyncBatchNorm) if isinstance(norm, kind)), None)
    if base is None:
        return None
    if type(norm).forward is base.forward:
        return nn.Identity()
    if base not in _RANKS or tuple(name for name, _ in norm.named_children()) != _INSIDE or not _is_both(norm, base):
        return None
    return nn.Sequential(OrderedDict((name, getattr(norm, name)) for name in _INSIDE))


def _is_both(norm: _BatchNorm, base: Any) -> bool:
    tensors = [*norm.parameters(recurse=False), *norm.buffers(recurse=False)]
    like = next((each for each in tensors if each.is_floating_point()), torch.zeros(()))
    sizes = (3, norm.num_features, *[2] * _RANKS[base])
    for training in (False, True):
        one, other = copy.deepcopy(norm).train(training), copy.deepcopy(norm).train(training)
        answers = []
        for each, forward in ((one, type(norm).forward), (other, _torchs(base))):
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                x = torch.randn(sizes, dtype=like.dtype, device=like.device)
                try:
                    answers.append(forward(each, x))
                except Exception:  # it takes no such input, so that nothing can be told of it
                    return False
        same = [answers, *zip(one.state_dict().values(), other.state_dict().values(), strict=True)]
        if not all(_alike(a, b) for a, b in same):
            return False
    return True


def _torchs(base: Any) -> Any:
    return lambda norm, x: norm.act(norm.drop(base.forward(norm, x)))


def _alike(a: object, b: object) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
    return both and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)  # type: ignore[arg-type]
