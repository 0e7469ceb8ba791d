"""From a checkpoint that the authors of Mean Spectral Normalization published to one of ours, exact in evaluation.

Their files and networks are described in `authors_layout`. In evaluation, sigma being the largest singular value of W
as a matrix (C_out, rest), they compute (source: SNlayers.py of github.com/AntixK/mean-spectral-norm, MIT licence)

  msn-affine   y = gain * (conv(x, renorm * W / sigma) + bias - mean) + shift
  sn           y = layer(x, renorm * W / sigma) + bias, which in msn-affine is the form of the classifier too
  bn           y = gain * (conv(x, W) + bias - mean) / sqrt(var + eps) + shift; gain 1 and shift 0 on SVHN

Our convolutions with a norm behind them have no bias: our running mean is mean - bias. Our sigma is u @ W @ v, exact
where u and v are the first singular vectors. renorm is 1 in every published file, and has to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from msn_deploy.core.artifacts import parent_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.nets import build_net
from msn_deploy.training.authors_layout import Layout, layout_of, read_authors, require_whole
from msn_deploy.training.checkpoint import save_checkpoint

_CLASSES = tuple("0123456789")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An imported checkpoint; accuracy (0 to 1) and epoch (counted from 0) are those that the authors recorded."""

    checkpoint: Path
    source: Path
    net: str
    norm: str
    parameters: int
    recorded_test_accuracy: float
    epoch: int


def import_checkpoint(path: Path, out: Path) -> Imported:
    """Write a checkpoint of the authors as one of ours: the same logits in evaluation, up to float32 round-off.

    Nothing in the file is executed. Raises InputError if it is not wholly in one of the two known layouts.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out} has to end in .safetensors.")
    if out.resolve() == path.resolve():
        raise InputError(f"{out} is the input itself; it would be overwritten.\nChoose another `--out`.")
    tensors, accuracy, epoch = read_authors(path)
    layout = layout_of(tensors, path)
    recipe = layout.recipe(epochs=epoch + 1)
    model = build_net(recipe, classes=len(_CLASSES))
    require_whole(tensors, layout, model, path)
    model.load_state_dict(state_of(tensors, layout, model))
    info = ModelInfo(
        net=layout.net,
        norm=layout.norm,
        classes=_CLASSES,
        preprocess=layout.preprocess,
        data=layout.data,
        recipe=recipe.to_dict(),
        metrics={"recorded_test_accuracy": accuracy},
    )
    save_checkpoint(out, model, info, parents=[parent_of(path, role="checkpoint")])
    return Imported(
        checkpoint=out,
        source=path,
        net=layout.net,
        norm=layout.norm,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        recorded_test_accuracy=accuracy,
        epoch=epoch,
    )


def state_of(tensors: Mapping[str, Tensor], layout: Layout, model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, in float64, that makes `model`, built by the layout's recipe, the network of a file.

    tensors: as `require_whole` let them pass.
    """
    state: dict[str, Tensor] = {}
    for place, norm, at, _ in layout.places(model):
        weight, bias = (tensors[f"{place}.{key}"].double() for key in ("weight", "bias"))
        state[f"{at}.weight"] = weight
        if layout.spectral:
            left, _, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            state |= {f"{at}.u": left[:, 0], f"{at}.v": right[0]}
        if norm is None:
            state[f"{at}.bias"] = bias
            continue
        gain = tensors[f"{norm}.weight"].double() if layout.affine else torch.ones_like(bias)
        shift = tensors[f"{norm}.bias"].double() if layout.affine else torch.zeros_like(bias)
        if layout.norm == "bn":
            at += 1  # a layer of its own, behind the convolution
            variance = tensors[f"{norm}.running_var"].double()
            state |= {f"{at}.weight": gain, f"{at}.bias": shift, f"{at}.running_var": variance}
        else:
            state |= {f"{at}.gain": gain, f"{at}.shift": shift}
        state[f"{at}.running_mean"] = tensors[f"{norm}.running_mean"].double() - bias
        state[f"{at}.num_batches_tracked"] = tensors[f"{norm}.num_batches_tracked"]
    return state
