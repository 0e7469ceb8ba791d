"""From a histogram to a range: bounded, equivariant, and the minimum of what each method says it minimises."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector, entropy, smooth_distribution

from msn_deploy.core.errors import InputError
from msn_deploy.quant.histograms import count
from msn_deploy.quant.scales import BINS, LEVELS, METHODS, check_method, range_of

_RNG = np.random.default_rng(3)
SHAPES = {
    "laplace": _RNG.laplace(size=60_000),
    "outliers": np.concatenate([_RNG.laplace(size=60_000), [40.0, -45.0]]),
    "normal": _RNG.normal(size=60_000),
    "uniform": _RNG.uniform(-1, 1, 60_000),
    "relu": np.maximum(_RNG.normal(size=60_000), 0),
}


def _histogram(values: NDArray[np.floating], scale: float = 1.0) -> tuple[NDArray[np.int64], float]:
    values = (values * scale).astype(np.float32)
    largest = float(np.abs(values).max())
    return count(values, largest), largest


def _share(values: NDArray[np.floating], method: str, **options: float) -> float:
    counts, largest = _histogram(values)
    return range_of(counts, largest, largest, method=method, **options) / largest


histograms = st.lists(
    st.tuples(st.integers(0, BINS - 1), st.integers(1, 10**6)), min_size=1, max_size=60, unique_by=lambda each: each[0]
).map(lambda pairs: np.bincount([at for at, _ in pairs], [n for _, n in pairs], minlength=BINS).astype(np.int64))


@settings(max_examples=60, deadline=None)
@given(counts=histograms, method=st.sampled_from(list(METHODS)), power=st.integers(-20, 20), share=st.floats(0.9, 1))
def test_bounded_by_the_maximum_and_equivariant(
    counts: NDArray[np.int64], method: str, power: int, share: float
) -> None:
    used = int(np.flatnonzero(counts)[-1]) + 1
    edge = 3.0
    maximum = edge * (used - 1 + share) / BINS
    found = range_of(counts, edge, maximum, method=method)
    assert 0 < found <= maximum
    scale = 2.0**power
    assert range_of(counts, edge * scale, maximum * scale, method=method) == found * scale
    if method != "entropy":  # whose empty levels count for a fixed 1e-4
        assert range_of(counts * 7, edge, maximum, method=method) == found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_times_k_has_a_range_times_k(shape: str, method: str) -> None:
    plain = _share(SHAPES[shape], method)
    counts, largest = _histogram(SHAPES[shape], 0.0371)
    assert range_of(counts, largest, largest, method=method) / largest == pytest.approx(plain, abs=0.05)  # flat minima


@settings(max_examples=40, deadline=None)
@given(counts=histograms, low=st.floats(50, 100), high=st.floats(50, 100))
def test_percentile_is_monotone_and_keeps_what_it_says(counts: NDArray[np.int64], low: float, high: float) -> None:
    low, high = sorted((low, high))
    few, many = (range_of(counts, 1.0, 1.0, method="percentile", percentile=each) for each in (low, high))
    assert few <= many <= range_of(counts, 1.0, 1.0, method="minmax") == 1.0
    kept = int(counts[: round(few * BINS)].sum())
    assert kept >= low / 100 * counts.sum() * (1 - 1e-12)


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_a_laplace_with_outliers_is_clipped_and_a_uniform_is_not(method: str) -> None:
    assert _share(SHAPES["outliers"], method) < 0.9
    assert _share(SHAPES["uniform"], method) > 0.99
    assert _share(SHAPES["laplace"], method) > _share(SHAPES["outliers"], method)


def test_minmax_is_the_maximum() -> None:
    assert {_share(values, "minmax") for values in SHAPES.values()} == {1.0}


@pytest.mark.parametrize("shape", ["laplace", "outliers", "normal", "relu"])
def test_entropy_is_the_minimum_of_the_divergence_by_onnxruntime(shape: str) -> None:
    """The definition written out, with onnxruntime's own smoothing and divergence, at ranges around the minimum."""
    counts, largest = _histogram(SHAPES[shape])
    best = round(range_of(counts, largest, largest, method="entropy") / largest * BINS)
    counts[0] = counts[1]

    def divergence(kept: int) -> float:
        p, q = counts[:kept].astype(np.float64), np.zeros(kept)
        p[-1] += counts[kept:].sum()
        for group in range(LEVELS):
            start, stop = kept * group // LEVELS, kept * (group + 1) // LEVELS
            filled = p[start:stop] > 0
            if filled.any():
                q[start:stop][filled] = counts[start:stop].sum() / filled.sum()
        return float(entropy(smooth_distribution(p), smooth_distribution(q)))

    found = divergence(best)
    least = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum())) + 8
    for other in {*range(max(best - 6, least), best + 7), *np.linspace(least, BINS, 40).astype(int)} - {best}:
        if other <= BINS:
            assert found <= divergence(int(other)) * (1 + 1e-3)


@pytest.mark.parametrize("shape", ["outliers", "normal"])
def test_entropy_is_near_the_threshold_of_onnxruntime(shape: str) -> None:
    """onnxruntime gives all bins that do not divide by the levels to the last one; its minima are multiples."""
    counts, largest = _histogram(SHAPES[shape])
    mirrored = np.concatenate([counts[:0:-1], [2 * counts[0]], counts[1:]])
    edges = np.linspace(-largest, largest, len(mirrored) + 1, dtype=np.float32)
    collector = HistogramCollector("entropy", True, len(mirrored), 2 * LEVELS, 99.99, None)
    _, theirs = collector.get_entropy_threshold(
        (mirrored, edges, np.float32(-largest), np.float32(largest), largest), 2 * LEVELS
    )
    ours = range_of(counts, largest, largest, method="entropy")
    assert abs(ours - float(theirs)) / largest * BINS < LEVELS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.971])
def test_percentile_is_that_of_onnxruntime_within_a_bin(shape: str, percentile: float) -> None:
    values = SHAPES[shape].astype(np.float32)
    collector = HistogramCollector("percentile", True, BINS, LEVELS, percentile, None)
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
        theirs = float(collector.compute_collection_result()["x"][1])
    largest = float(np.abs(values).max())
    assert abs(_share(values, "percentile", percentile=percentile) - theirs / largest) * BINS < 1.5


def test_mse_is_the_minimum_of_the_error_on_the_values_themselves() -> None:
    for shape in ("outliers", "normal", "relu"):
        values = SHAPES[shape]
        largest = float(np.abs(values).max())

        def error(top: float, values: NDArray[np.floating] = values) -> float:
            step = top / 127
            return float(np.square(np.clip(np.rint(values / step), -127, 127) * step - values).mean())

        found = error(_share(values, "mse") * largest)
        assert found <= 1.02 * min(error(share * largest) for share in np.linspace(0.1, 1, 120))


def test_zeros_of_a_relu_do_not_pull_the_range_down() -> None:
    """Nor does any value that many pixels share, as a black background does behind a convolution."""
    relu, normal = SHAPES["relu"], np.abs(SHAPES["normal"])
    for method in ("entropy", "mse"):
        assert _share(relu, method) == pytest.approx(_share(normal, method), abs=0.12)
    background = np.concatenate([SHAPES["normal"], np.full(200_000, 0.3)])
    counts, largest = _histogram(background)
    kept = range_of(counts, largest, largest, method="entropy")
    assert np.mean(np.abs(background) > kept) <= 0.001


def test_exact_zeros_cost_mse_nothing() -> None:
    """However many: behind a ReLU most values can be zero, and the range is that of the others."""
    counts = (10**7 * np.exp(-np.arange(BINS) / 10)).astype(np.int64)
    counts[0], counts[-1] = 0, 1
    wanted = range_of(counts, 1.0, 1.0, method="mse")
    assert wanted * BINS < LEVELS  # finer than the bins: half a bin from zero would look like an error
    counts[0] = 10**12
    assert range_of(counts, 1.0, 1.0, method="mse") == wanted


def test_few_levels_in_use_are_kept_as_they_are() -> None:
    counts = np.zeros(BINS, dtype=np.int64)
    counts[:30] = 5
    for method in ("entropy", "mse", "minmax"):
        assert range_of(counts, 1.0, 29.5 / BINS, method=method) == 29.5 / BINS


@pytest.mark.parametrize(
    ("method", "percentile", "words"),
    [
        ("magic", 99.9, "unknown calibration method 'magic'; known are: auto, entropy, minmax, percentile, mse"),
        ("entrpy", 99.9, "did you mean 'entropy'"),
        ("percentile", 100.5, "percentile 100.5 is out of reach; 50 to 100"),
        ("percentile", 0.99, "percentile 0.99 is out of reach"),
        ("percentile", float("nan"), "percentile nan is out of reach"),
    ],
)
def test_what_is_no_method(method: str, percentile: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_method(method, percentile)
