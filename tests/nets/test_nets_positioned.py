"""The U-Net and the detector: what they give, where they start, and that their twins fold to the same graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import NORMS, ModelInfo
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.msn import MSNConv2d
from msn_deploy.nets import build_net
from msn_deploy.training.checkpoint import save_checkpoint

SIDE = {"unet": 16, "detector": 24}
CONVS = {"unet": 12, "detector": 8}  # with a norm
WIDTH = 2


def _recipe(net: str, norm: str) -> Recipe:
    recipe = load_recipe(f"{net}_bn")
    return replace(recipe, width=WIDTH, input_shape=(1, 3, SIDE[net], SIDE[net])).override(norm=norm)


@pytest.mark.parametrize("net", SIDE)
def test_every_convolution_but_the_last_has_the_norm(net: str) -> None:
    counts = {}
    for norm in NORMS:
        model = build_net(_recipe(net, norm), classes=5)
        kinds = Counter(type(module) for module in model.modules())
        if norm in ("msn", "msn-affine"):
            assert kinds[MSNConv2d] == CONVS[net]
        assert kinds[nn.BatchNorm2d] == (CONVS[net] if norm == "bn" else 0)
        assert kinds[nn.GroupNorm] == (CONVS[net] if norm.startswith("gn") else 0)
        counts[norm] = sum(parameter.numel() for parameter in model.parameters())
        assert model(torch.rand(2, 3, SIDE[net], SIDE[net])).isfinite().all()
    assert counts["bn"] == counts["msn-affine"] == counts["gn"] > counts["msn"] == counts["sn"] == counts["none"]


@pytest.mark.parametrize(("net", "norm"), [("unet", "msn"), ("unet", "bn"), ("detector", "msn"), ("detector", "bn")])
def test_recipes_have_20_to_100_thousand_parameters(net: str, norm: str) -> None:
    recipe = load_recipe(f"{net}_{norm}")
    model = build_net(recipe, classes=11)
    assert 20_000 < sum(parameter.numel() for parameter in model.parameters()) < 100_000 + 1000


def test_a_pixel_is_told_by_what_is_around_it() -> None:
    """What the U-Net says of a pixel depends on pixels far away, and most on its own place."""
    torch.manual_seed(0)
    model = build_net(replace(_recipe("unet", "none"), width=8, input_shape=(1, 3, 64, 64)), classes=4).eval()
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    model(x)[0, :, 32, 32].sum().backward()
    assert x.grad is not None
    reach = x.grad[0].abs().sum(0)
    assert reach[32 - 20, 32] > 0
    assert reach[28:37, 28:37].sum() > 0.2 * reach.sum()


def test_the_detector_starts_where_focal_loss_wants_it() -> None:
    torch.manual_seed(0)
    model = build_net(_recipe("detector", "msn"), classes=5).eval()
    with torch.no_grad():
        made = model(torch.rand(4, 3, 24, 24))
    assert made.shape == (4, 5 + 4, 6, 6)
    assert float(made[:, :5].sigmoid().mean()) == pytest.approx(0.01, rel=0.2)
    assert float(made[:, 5:].mean()) == pytest.approx(2, rel=0.2)
    model.distances.bias.data.fill_(-9)
    with torch.no_grad():
        assert float(model(torch.rand(1, 3, 24, 24))[:, 5:].max()) == 0  # never negative


@pytest.mark.parametrize("net", SIDE)
def test_sides_that_cannot_be_halved_three_times_are_refused(net: str) -> None:
    with pytest.raises(InputError, match=f"{net} needs sides that are multiples of 8 pixels, got 24x20"):
        build_net(replace(_recipe(net, "bn"), input_shape=(1, 3, 24, 20)), classes=5)


def test_a_net_is_for_its_task_alone() -> None:
    for net, task in (("unet", "detection"), ("detector", "classification"), ("cnn3", "segmentation")):
        with pytest.raises(InputError, match=rf"{net} is not a net for {task}.\nNets for it: "):
            build_net(replace(_recipe("unet", "bn"), net=net, task=task), classes=5)
    for task in ("multi-label", "regression"):
        model = build_net(replace(load_recipe("cnn3_bn"), task=task), classes=5)
        assert model(torch.rand(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(InputError, match=r"unet has no linear layer.\nLeave `classifier` out"):
        build_net(replace(_recipe("unet", "bn"), classifier="sn"), classes=5)
    with pytest.raises(InputError, match="unknown net 'unett'; did you mean 'unet'"):
        build_net(replace(_recipe("unet", "bn"), net="unett"), classes=5)


@pytest.mark.slow
@pytest.mark.parametrize("net", SIDE)
def test_twins_fold_to_the_same_graph_of_the_same_function(net: str, tmp_path: Path, unsettle) -> None:  # type: ignore[no-untyped-def]
    from msn_deploy.engine import OrtRunner, run_images
    from msn_deploy.model.opened import open_model
    from msn_deploy.pipeline.export import export_onnx

    graphs, operators = set(), Counter[str]()
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE[net], SIDE[net])).astype(np.float32)
    for norm in ("msn", "bn"):
        recipe = _recipe(net, norm)
        torch.manual_seed(1)
        model = unsettle(build_net(recipe, classes=5), 2)
        checkpoint = tmp_path / f"{net}_{norm}.safetensors"
        info = ModelInfo(net=net, norm=norm, recipe=recipe.to_dict(), classes=tuple("abcde"), task=recipe.task)
        save_checkpoint(checkpoint, model, info)
        onnx = checkpoint.with_suffix(".onnx")
        export_onnx(str(checkpoint), onnx, dynamic_batch=True)
        opened = open_model(onnx, step="a test")
        assert opened.info is not None
        graphs.add(opened.info.graph)
        operators = Counter(node.op_type for node in opened.proto.graph.node)
        with torch.no_grad():
            wanted = model(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(run_images(OrtRunner(opened), images), wanted, atol=2e-5)
    assert len(graphs) == 1
    assert operators["Conv"] == CONVS[net] + {"unet": 1, "detector": 2}[net]
    assert set(operators) == {"Conv", "Relu", "Resize", "Concat"} | ({"MaxPool"} if net == "unet" else set())
