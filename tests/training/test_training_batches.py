"""Batches: the same pixels as evaluation sees, every image once an epoch, moved only as far as they may."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.core.recipes import TrainOptions, load_recipe
from msn_deploy.data import Split, to_input
from msn_deploy.msn import layers
from msn_deploy.nets import build_net
from msn_deploy.training.batches import Batches, divided

COUNT = 23


def _split(channels: int = 3, height: int = 16, width: int = 24) -> Split:
    """Noise without a black pixel, so that a border is told from the image; each label is the number of its image."""
    images = np.random.default_rng(5).integers(1, 256, (COUNT, height, width, channels), dtype=np.uint8)
    return Split(source="random", images=images, labels=np.arange(COUNT), classes=tuple(map(str, range(COUNT))))


def _prep(split: Split) -> Preprocess:
    _, height, width, channels = split.images.shape
    mean, std = (0.31, 0.47, 0.52), (0.21, 0.33, 0.27)
    return Preprocess(height_px=height, width_px=width, channels=channels, mean=mean[:channels], std=std[:channels])


def _batches(split: Split, *, rank: int = 0, ranks: int = 1, **options: Any) -> Batches:
    train = TrainOptions(**{"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "seed": 3} | options)
    return Batches(split, _prep(split), train, device=torch.device("cpu"), rank=rank, ranks=ranks)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_have_the_bits_of_to_input(channels: int, channels_last: bool) -> None:
    split = _split(channels)
    wanted = to_input(split.images, _prep(split))
    for images, labels in _batches(split, channels_last=channels_last).epoch(0):
        np.testing.assert_array_equal(images.numpy(), wanted[labels.numpy()])
        assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_an_epoch_sees_no_image_twice_and_the_next_one_another_order() -> None:
    batches = _batches(_split())
    first, again, second = (torch.cat([labels for _, labels in batches.epoch(epoch)]) for epoch in (0, 0, 1))
    assert len(batches) == 5
    assert len(first) == len(set(first.tolist())) == 20
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat([labels for _, labels in _batches(_split(), seed=4).epoch(0)]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_those_of_plain_operations_however_a_small_batch_lies(
    channels: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one channel lie in both formats at once, and torch then takes channels_last for what follows."""
    split = _split(channels, height=32, width=32)
    images, labels = next(_batches(split, batch_size=2, channels_last=channels_last).epoch(0))
    torch.manual_seed(4)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    recipe = replace(load_recipe("vgg7_msn"), input_shape=(1, channels, 32, 32), width=8)
    model = build_net(recipe, classes=COUNT).to(memory_format=layout)
    divided_later: list[int] = []
    exact = layers.conv_over_sigma
    monkeypatch.setattr(
        layers, "conv_over_sigma", lambda *given, **named: divided_later.append(1) or exact(*given, **named)
    )
    found = _gradients(model, images, labels)
    monkeypatch.setattr(layers, "traced", lambda: True)
    assert len(divided_later) == 3
    for one, other in zip(found, _gradients(model, images, labels), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    model = copy.deepcopy(model)
    nn.functional.cross_entropy(model(images), labels).backward()
    return [each.grad for each in model.parameters()]


def _moves(augment: str, epochs: int = 12) -> set[tuple[int, int, bool]]:
    """Return every (down, right, flipped) by which a batch's image is found to differ from its original."""
    split = _split()
    prep = _prep(split)
    low = to_input(np.zeros_like(split.images[:1]), prep)  # black, as the border is
    height, width = split.images.shape[1:3]
    canvas = np.broadcast_to(low[:, :, :1, :1], (COUNT, 3, height + 8, width + 8)).copy()
    canvas[:, :, 4:-4, 4:-4] = to_input(split.images, prep)
    found = set()
    for epoch in range(epochs):
        for images, labels in _batches(split, augment=augment).epoch(epoch):
            for image, label in zip(images.numpy(), labels.tolist(), strict=True):
                match = [
                    (down - 4, right - 4, flipped)
                    for down in range(9)
                    for right in range(9)
                    for flipped in (False, True)
                    if np.array_equal(
                        image,
                        canvas[label][:, down : down + height, right : right + width][:, :, :: -1 if flipped else 1],
                    )
                ]
                assert len(match) == 1
                found.add(match[0])
    return found


def test_flip_turns_about_half_of_the_images_and_moves_none() -> None:
    assert _moves("flip") == {(0, 0, False), (0, 0, True)}


def test_crop_moves_by_up_to_an_eighth_of_each_side() -> None:
    moves = _moves("crop")
    assert {down for down, _, _ in moves} == {-2, -1, 0, 1, 2}
    assert {right for _, right, _ in moves} == {-3, -2, -1, 0, 1, 2, 3}
    assert {flipped for _, _, flipped in moves} == {False}


def test_crop_and_flip_are_independent() -> None:
    moves = _moves("crop-flip")
    assert len(moves) > 40  # of 5 * 7 * 2
    assert {flipped for _, _, flipped in moves} == {False, True}


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_the_parts_of_all_processes_make_up_the_batch(augment: str) -> None:
    split = _split()
    parts = [list(_batches(split, rank=rank, ranks=2, augment=augment).epoch(1)) for rank in range(2)]
    for (images, labels), *both in zip(_batches(split, augment=augment).epoch(1), *parts, strict=True):
        assert torch.equal(images, torch.cat([each[0] for each in both]))
        assert torch.equal(labels, torch.cat([each[1] for each in both]))


def test_a_batch_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"23 training images do not fill one batch of 24[\s\S]*--batch-size"):
        _batches(_split(), batch_size=24)
    with pytest.raises(InputError, match=r"batch of 4 can't be divided among 3 processes[\s\S]*multiple of 3"):
        _batches(_split(), ranks=3)


def test_what_is_held_out_is_drawn_evenly_and_not_learned() -> None:
    split = _split()
    learned, held = divided(split, 0.2)
    assert held.labels.tolist() == [0, 6, 11, 16, 22]
    assert sorted([*learned.labels, *held.labels]) == list(range(COUNT))
    np.testing.assert_array_equal(learned.images, split.images[learned.labels])
    np.testing.assert_array_equal(held.images, split.images[held.labels])
    whole, nothing = divided(split, 0.0)
    assert (len(whole.labels), len(nothing.labels)) == (COUNT, 0)
