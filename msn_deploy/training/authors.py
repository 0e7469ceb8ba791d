"""From a checkpoint that the authors of Mean Spectral Normalization published to one of ours, exact in evaluation.

In evaluation, sigma being the largest singular value of W as a matrix (C_out, rest), the authors' networks compute
(source: SNlayers.py of github.com/AntixK/mean-spectral-norm, MIT licence, the code of arXiv 1907.04003)

  msn-affine   y = gain * (conv(x, renorm * W / sigma) + bias - mean) + shift
  sn           y = layer(x, renorm * W / sigma) + bias, which in msn-affine is the form of the classifier too
  bn           y = gain * (conv(x, W) + bias - mean) / sqrt(var + eps) + shift; gain 1 and shift 0 on SVHN

Our convolutions with a norm behind them have no bias: our running mean is mean - bias. Our sigma is u @ W @ v, exact
where u and v are the first singular vectors. renorm is 1 in every published file, and has to be.

A file is a torch pickle {"net": names to tensors, "acc": test accuracy in percent, "epoch": counted from 0}, in one
of two layouts:

MNIST, main.N.* and fc.*; the norm is what the names say, not what the file is called:
  bn           main.{0,3,6} weight, bias; main.{1,4,7} weight, bias, running_mean, running_var, num_batches_tracked
  msn-affine   the same, with a renorm (1, 1) beside each layer's weight, fc's too; running_var is not used and stays 1
  sn           main.{0,2,4} and fc weight, bias, renorm
  none         main.{0,2,4} and fc weight, bias
SVHN, features.N.* and classifier.0.*: bn without weight and bias of its own, also in the files called MSN and SN.

A file does not name its activation. It is ReLU on SVHN and in the MNIST networks called Conv (no norm; two of the
published ones have a BatchNorm all the same), LeakyReLU 0.1 in the other MNIST networks: only so do they reach their
recorded accuracy. A BatchNorm network for MNIST is therefore the one case in which the name of the file decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from msn_deploy.core.artifacts import parent_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, NormName, Preprocess
from msn_deploy.core.opening import is_same
from msn_deploy.core.recipes import Recipe, TrainOptions
from msn_deploy.nets import build_net
from msn_deploy.training.checkpoint import save_checkpoint
from msn_deploy.training.weights import read_pickle

_LOG = logging.getLogger(__name__)
_CALLED = {"MSN": "msn-affine", "SN": "sn", "BN": "bn", "Conv_": "none"}
_HOLDS = {
    "msn-affine": "an MSN network",
    "sn": "an SN network",
    "bn": "a BatchNorm network",
    "none": "a network without a norm",
}
_KNOWN = "Known are the authors' networks for MNIST (main.N.*, fc.*) and SVHN (features.N.*, classifier.0.*)."
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
    if is_same(out, path):
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
        task="classification",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which network of ours a file holds, and where its layers are: TRUNK.N for each N of convs, then HEAD.

    affine: whether its norms have a weight and a bias. width: channels of the first convolution.
    """

    net: str
    norm: NormName
    affine: bool
    data: str
    width: int
    preprocess: Preprocess
    trunk: str
    convs: tuple[int, ...]
    head: str

    @property
    def spectral(self) -> bool:
        """Whether the weights, the classifier's too, are divided by their spectral norm."""
        return self.norm in ("msn-affine", "sn")

    def recipe(self, *, epochs: int) -> Recipe:
        """Return a recipe that builds the network; of how it was trained the file tells the epochs alone."""
        prep = self.preprocess
        return Recipe(
            name=f"{self.net}_{self.norm.replace('-', '_')}",
            net=self.net,
            norm=self.norm,
            data=self.data,
            input_shape=(1, prep.channels, prep.height_px, prep.width_px),
            width=self.width,
            classifier="sn" if self.spectral else "linear",
            train=TrainOptions(epochs=epochs, batch_size=64, learning_rate=0.001),
        )

    def places(self, model: nn.Module) -> Iterator[tuple[str, str | None, int, Tensor]]:
        """Yield per layer its name and its norm's in the file, its index in our network, and its weight there."""
        layers = enumerate(model.children())
        ours = [(at, layer.weight) for at, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        for number, (at, weight) in zip(self.convs, ours[:-1], strict=True):
            norm = f"{self.trunk}.{number + 1}" if self.norm in ("bn", "msn-affine") else None
            yield f"{self.trunk}.{number}", norm, at, weight
        yield self.head, None, *ours[-1]


def read_authors(path: Path) -> tuple[dict[str, Tensor], float, int]:
    """Read a file without executing it: its tensors, recorded accuracy (0 to 1) and epoch. Raises InputError."""
    content = read_pickle(path, hint="Likely cause: a truncated copy, or no checkpoint of the authors. Copy it again.")
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict of net, acc and epoch.\n{_KNOWN}")
    for key in ("net", "acc", "epoch"):
        if key not in content:
            raise InputError(f"{path} has no entry {key!r}, which every checkpoint of the authors has.\n{_KNOWN}")
    net, accuracy, epoch = content["net"], content["acc"], content["epoch"]
    if not isinstance(net, Mapping) or not all(isinstance(value, Tensor) for value in net.values()):
        raise InputError(f"{path}: 'net' is not a dict of names to tensors.\n{_KNOWN}")
    if type(accuracy) not in (int, float) or not 0 <= accuracy <= 100:
        raise InputError(f"{path}: 'acc' is {_short(accuracy)}, expected a number of percent.")
    if type(epoch) is not int or not 0 <= epoch < 2**31:
        raise InputError(f"{path}: 'epoch' is {_short(epoch)}, expected a whole number from 0.")
    return {str(name): value.detach() for name, value in net.items()}, round(accuracy / 100, 6), epoch


def layout_of(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """Tell the layout from the names of the tensors. Raises InputError.

    A file that is called otherwise than its content is named in the log.
    """
    called = next((prefix for prefix in _CALLED if path.name.startswith(prefix)), None)
    if any(name.startswith("main.") for name in tensors):
        renorm = any(name.endswith(".renorm") for name in tensors)
        normed = any(name.endswith(".running_mean") for name in tensors)
        norm: NormName = ("msn-affine" if renorm else "bn") if normed else ("sn" if renorm else "none")
        layout = Layout(
            net="cnn3_relu" if norm == "none" or (norm == "bn" and called == "Conv_") else "cnn3",
            norm=norm,
            affine=True,
            data="mnist",
            width=16,
            preprocess=Preprocess(height_px=28, width_px=28, channels=1, mean=(0.4914,), std=(0.2023,)),
            trunk="main",
            convs=(0, 3, 6) if normed else (0, 2, 4),
            head="fc",
        )
    elif any(name.startswith("features.") for name in tensors):
        layout = Layout(
            net="vgg7_svhn",
            norm="bn",
            affine=False,
            data="svhn",
            width=32,
            preprocess=Preprocess(height_px=32, width_px=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
            trunk="features",
            convs=(0, 4, 9, 13, 18, 23),
            head="classifier.0",
        )
    else:
        first = f"its first key is {_short(next(iter(tensors)))}" if tensors else "it is empty"
        raise InputError(f"{path} holds a network of another layout: {first}.\n{_KNOWN}")
    if called and _CALLED[called] != layout.norm:
        text = f"{path.name} is called {called.rstrip('_')} but holds {_HOLDS[layout.norm]}; imported as {layout.norm}"
        _LOG.warning("%s%s", text, ", with the ReLU of the networks called Conv" if called == "Conv_" else "")
    return layout


def require_whole(tensors: Mapping[str, Tensor], layout: Layout, model: nn.Module, path: Path) -> None:
    """Compare every tensor with `model`, the network of ours that the layout names.

    Raises InputError that names the first tensor that is missing, odd, of another shape or type, or of values that
    our layers cannot take up.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for place, norm, _, weight in layout.places(model):
        channels = (len(weight),)
        shapes |= {f"{place}.weight": tuple(weight.shape), f"{place}.bias": channels}
        if layout.spectral:
            shapes[f"{place}.renorm"] = (1, 1)
        if norm is not None:
            keys = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{norm}.{key}": channels for key in keys[0 if layout.affine else 2 :]}
            shapes[f"{norm}.num_batches_tracked"] = ()
    what = f"though it looks like {_HOLDS[layout.norm]} for {layout.data.upper()}"
    if missing := next((name for name in shapes if name not in tensors), None):
        raise InputError(f"{path} has no key {missing}, {what}.\n{_KNOWN}")
    if odd := next((name for name in tensors if name not in shapes), None):
        raise InputError(f"{path} has an odd key {_short(odd)}, {what}.\n{_KNOWN}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{path}: {name} is {tuple(tensors[name].shape)}, expected {shape}.\n{_KNOWN}")
        if problem := _problem(name, tensors[name], spectral=layout.spectral):
            raise InputError(f"{path}: {name} {problem}.")


def _problem(name: str, tensor: Tensor, *, spectral: bool) -> str | None:
    """Return what is wrong with a tensor of the right shape, or None."""
    wanted = torch.float32 if tensor.dim() else torch.int64
    if tensor.dtype != wanted or tensor.layout != torch.strided or tensor.is_meta:
        return f"is {tensor.dtype} ({tensor.layout}), expected plain {wanted}"
    if lost := int((~torch.isfinite(tensor)).sum()):
        return f"has {lost} of {tensor.numel()} values not finite; its training had diverged"
    low, high = float(tensor.min()), float(tensor.max())
    if name.endswith(".renorm") and low != 1:
        return f"is {low:g}; our layers have no such factor, so it has to be 1"
    if name.endswith(".running_var") and spectral and not low == high == 1:
        return f"lies between {low:g} and {high:g}; MSN leaves it at 1, so this is not an MSN network"
    if name.endswith(".running_var") and low < 0:
        return f"holds a negative variance, {low:g}"
    if spectral and tensor.dim() > 1 and low == high == 0:
        return "is 0 throughout and has no spectral norm to divide by"
    return None


def _short(value: object) -> str:
    return " ".join(str(value).split())[:60]
