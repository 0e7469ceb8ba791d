"""What the folds of a network are proved on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from msn_deploy.graph.certificate import INPUTS, certify_layers, edge_feeds
from msn_deploy.model.feeds import fixed_input, with_open_batch
from msn_deploy.msn import MSNConv2d, MSNConvTranspose2d, SNLinear, fold_layers

# layer, and where the output channels of its weight are
LAYERS = {
    "msn": (lambda: MSNConv2d(4, 6, 3, groups=2), 0),
    "msn-transposed": (lambda: MSNConvTranspose2d(4, 6, 3, stride=2), 1),
    "sn-linear": (lambda: SNLinear(7, 5), 0),
    "torch": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), 0),
    "torch-transposed": (lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 3)), 1),
    "torch-hook": (lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)), 0),
}


@pytest.mark.parametrize(("batch", "runs"), [(None, 1), (1, 2), (2, 1), (3, 1)])
def test_numbers_and_ones_with_lit_corners_in_runs_that_the_graph_takes(batch: int | None, runs: int) -> None:
    shape = fixed_input("x", "float32", (batch or 1, 2, 4, 5))
    found = edge_feeds([shape] if batch else with_open_batch([shape]))
    assert len(found) == runs
    assert {len(each["x"]) for each in found} == {len(INPUTS) if batch is None else batch}
    images = np.concatenate([each["x"] for each in found])
    assert images[0].std() > 0.5
    np.testing.assert_array_equal(images[1][:, 0], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 3], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 1:3], np.ones((2, 2, 5)))


def test_every_input_is_fed_by_its_own_type_and_shape() -> None:
    inputs = [fixed_input("left", "float32", (2, 3, 8, 8)), fixed_input("t", "float32", (2,)),
              fixed_input("frames", "uint8", (2, 8, 8, 3)), fixed_input("scale", "float32", ())]  # fmt: skip
    (found,) = edge_feeds(inputs)
    assert {name: each.shape for name, each in found.items()} == {each.name: each.shape for each in inputs}
    assert found["left"][1].max() == 100 == found["t"][1]
    assert found["frames"].dtype == np.uint8


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.:FutureWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_sigma_is_what_is_used_beside_the_true_one(name: str) -> None:
    torch.manual_seed(2)
    make, axis = LAYERS[name]
    model = nn.Sequential(make()).eval()
    layer = model[0]
    chain = getattr(layer, "parametrizations", None)
    raw = chain["weight"].original if chain else getattr(layer, "weight_orig", layer.weight)
    _, layers = fold_layers(model)
    (told,) = certify_layers(layers)
    largest = torch.linalg.svdvals(raw.detach().double().transpose(0, axis).flatten(1))[0].item()
    assert told.sigma_svd == pytest.approx(largest, rel=1e-9)
    assert told.sigma is not None
    assert told.sigma <= largest * (1 + 1e-6)
    used = raw.detach().double().norm() / layers[0].after.weight.double().norm()
    assert told.sigma == pytest.approx(used.item(), rel=1e-5)
    assert told.difference is not None
    assert told.of is not None
    assert told.difference < 1e-13 * told.of
    assert (told.norm, told.rule) == ("0", "into-weight")


def test_weight_norm_has_no_sigma() -> None:
    _, layers = fold_layers(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))).eval())
    (told,) = certify_layers(layers)
    assert (told.operator, told.sigma, told.sigma_svd) == ("WeightNorm", None, None)
