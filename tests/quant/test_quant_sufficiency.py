"""How ranges drift with fewer images: the same numbers as from calibrating on those alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.quant import histograms
from msn_deploy.quant.calibrate import quantised_tensors, ranges_from
from msn_deploy.quant.sufficiency import SHUFFLES, drift_curve, shuffled_groups


def collect(graph: ModelProto, images: Any, *args: Any, **options: Any) -> histograms.Histograms:
    return histograms.collect(graph, histograms.samples_of(graph, images), *args, load=run_on_one_thread, **options)


@pytest.mark.parametrize("count", [16, 17, 40, 64, 65, 300])
def test_groups_add_up_to_random_subsets_of_doubling_size(count: int) -> None:
    groups = shuffled_groups(count)
    assert groups.shape == (SHUFFLES, count)
    for order in groups:
        sizes = np.cumsum(np.bincount(order))
        assert sizes.tolist() == [min(16 * 2**at, count) for at in range(len(sizes))]
        assert sizes[-1] == count
    assert len({order.tobytes() for order in groups}) == (1 if count == 16 else SHUFFLES)
    np.testing.assert_array_equal(groups, shuffled_groups(count))
    assert count == 16 or (groups != shuffled_groups(count, seed=1)).any()


def test_the_drift_is_that_of_the_subset_alone(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    """By minmax, exactly; and the ranges of all images are those without groups, to the bit."""
    graph, images = exported("cnn3", "msn").graph, digits(70)
    groups = shuffled_groups(70)
    names = quantised_tensors(graph)
    found = collect(graph, images, names, groups=groups)
    for method in ("entropy", "minmax", "mse", "percentile"):
        ranges = ranges_from(found, method=method)
        assert ranges == ranges_from(collect(graph, images, names), method=method)
    ranges = ranges_from(found, method="minmax")
    curve = drift_curve(found, ranges, images=70, method="minmax", percentile=99.99)
    assert [point.images for point in curve] == [16, 32, 64]
    for at, point in enumerate(curve):
        drifts = []
        for order in groups:
            alone = ranges_from(collect(graph, images[order <= at], names), method="minmax")
            drifts.append([ranges[name] / alone[name] - 1 for name in names])
        worst = np.max(drifts, axis=1)
        assert point.median == pytest.approx(np.median(np.median(drifts, axis=1)))
        assert (point.worst_low, point.worst, point.worst_high) == pytest.approx(
            (worst.min(), np.median(worst), worst.max())
        )
    assert curve[0].worst_high > 0
    assert curve[0].median >= curve[-1].median


def test_a_tensor_that_is_zero_on_few_images(exported: Callable[..., Any], digits: Callable[..., Any]) -> None:
    graph, images = exported("cnn3", "msn").graph, digits(40)
    images[1:] = 0
    found = collect(graph, images, ["input"], groups=shuffled_groups(40))
    ranges = ranges_from(found, method="minmax")
    (first, *_) = drift_curve(found, ranges, images=40, method="minmax", percentile=99.99)
    assert first.worst_high == pytest.approx(2047)
    assert first.worst_low in (0, pytest.approx(2047))
