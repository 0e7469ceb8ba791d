"""What is no set of images to calibrate on, and what is: synthetic sets of each kind, and real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.model_info import Preprocess
from msn_deploy.data import load_split
from msn_deploy.data.names import folder_of
from msn_deploy.data.preprocess import PreparedImages, measured_preprocess
from msn_deploy.quant.calibration_checks import check_images, check_labels, examine

MNIST = builtin_folder("models").parent.parent / "shared" / "data" / "mnist"
PREP = Preprocess(height_px=28, width_px=28, channels=1, mean=(0.2,), std=(0.3,))


def _smooth(count: int, channels: int = 1, side: int = 28) -> NDArray[np.float32]:
    """Random images with the falling spectrum of photographs, mean 0 and deviation 1 in all."""
    rng = np.random.default_rng(count)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    spectrum = np.fft.fft2(rng.standard_normal((count, channels, side, side))) / np.maximum(frequency, 1 / side)
    images = np.fft.ifft2(spectrum).real
    return ((images - images.mean()) / images.std()).astype(np.float32)


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["uniform", "normal", "bytes"])
def test_noise_is_refused_with_the_number(kind: str, channels: int, side: int) -> None:
    rng = np.random.default_rng(4)
    shape = (64, channels, side, side)
    noise = {
        "uniform": lambda: rng.random(shape),
        "normal": lambda: rng.standard_normal(shape),
        "bytes": lambda: rng.integers(0, 256, shape) / 255,
    }[kind]().astype(np.float32)
    facts = examine(noise)
    assert facts.noise_like > 32
    with pytest.raises(InputError, match=r"are noise: neighbouring pixels correlate by -?0\.0\d"):
        check_images(facts, None)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist"])
def test_real_images_pass_without_a_word(name: str) -> None:
    source = str(MNIST) if name == "mnist" else name
    if name != "digits" and not (MNIST.is_dir() if name == "mnist" else folder_of(name)):
        pytest.skip(f"{name} is not on this machine")
    for side in (8, 28) if name == "digits" else (28,):
        split = load_split(source, "train", height_px=side, width_px=side, channels=1, lazy=True).first(128)
        prep = measured_preprocess(np.asarray(split.images))
        facts = examine(PreparedImages(split.images, prep))
        assert check_images(facts, prep) == check_images(facts, None) == []
        assert check_labels(split.labels, split.classes) == []
        assert facts.images == facts.distinct == 128
        assert facts.autocorrelation is not None
        assert facts.autocorrelation > 0.35
        assert facts.mean[0] == pytest.approx(0, abs=1e-5)
        assert (facts.std[0], facts.rms) == pytest.approx((1, 1), abs=1e-3)


def test_natural_colour_images_pass() -> None:
    facts = examine(_smooth(120, 3, 32))
    assert check_images(facts, replace(PREP, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)) == []
    assert facts.noise_like == 0


def test_facts_are_those_of_the_values_however_they_are_split() -> None:
    images = _smooth(70, 3)
    images[40] = images[3]
    images[50] = 0.25
    facts = examine(images)
    assert (facts.images, facts.distinct, facts.constant) == (70, 69, 1)
    assert facts.mean == pytest.approx(images.mean(axis=(0, 2, 3), dtype=np.float64))
    assert facts.std == pytest.approx(images.std(axis=(0, 2, 3), dtype=np.float64))
    assert (facts.lowest, facts.highest) == (images.min(), images.max())
    across = [np.corrcoef(image[:, :, 1:].ravel(), image[:, :, :-1].ravel())[0, 1] for image in images[:40]]
    down = [np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1] for image in images[:40]]
    assert facts.autocorrelation == pytest.approx(np.median([across, down]), abs=0.05)


@pytest.mark.parametrize("count", [0, 1, 15])
def test_too_few(count: int) -> None:
    with pytest.raises(InputError, match=r"are too few to calibrate on; at least 16"):
        check_images(examine(_smooth(20)[:count]), PREP)


def test_few_images_are_said_to_be_few() -> None:
    assert check_images(examine(_smooth(99)), PREP) == [
        "99 calibration images are few; 100 or more give steadier scales"
    ]
    assert check_images(examine(_smooth(100)), PREP) == []


def test_constant_images() -> None:
    images = _smooth(120)
    images[:3] = 0.5
    assert check_images(examine(images), PREP) == ["3 of 120 calibration images are constant (2.5%)"]
    images[:60] = np.linspace(-1, 1, 60, dtype=np.float32).reshape(-1, 1, 1, 1)
    with pytest.raises(InputError, match="60 of 120 calibration images are constant"):
        check_images(examine(images), PREP)


def test_plain_colours_are_neither_constant_nor_noise() -> None:
    """Another value in each channel: no neighbours to compare."""
    images = _smooth(120, 3)
    images[:2] = np.array([0.1, 0.9, -0.4], np.float32).reshape(1, 3, 1, 1)
    facts = examine(images)
    assert (facts.constant, facts.noise_like) == (0, 0)


def test_copies() -> None:
    images = _smooth(120)
    images[:21] = images[30]
    assert check_images(examine(images), PREP) == ["only 99 of 120 calibration images are different (82.5%)"]
    images[:] = images[30]
    with pytest.raises(InputError, match="all 120 calibration images are the same image"):
        check_images(examine(images), PREP)


def test_some_noise_among_images() -> None:
    images = _smooth(120)
    images[:12] = np.random.default_rng(0).standard_normal((12, 1, 28, 28))
    (said,) = check_images(examine(images), PREP)
    assert said.startswith("1")
    assert "like noise" in said
    images[:90] = np.random.default_rng(0).standard_normal((90, 1, 28, 28))
    with pytest.raises(InputError, match="are noise"):
        check_images(examine(images), PREP)


def _pixels(low: float, high: float) -> Any:
    images = _smooth(120)
    return (images - images.min()) / np.ptp(images) * (high - low) + low


@pytest.mark.parametrize("prep", [None, replace(PREP, mean=(0.0,), std=(1.0,))], ids=["silent", "plain"])
def test_bytes_where_a_model_takes_0_to_1(prep: Preprocess | None) -> None:
    assert check_images(examine(_pixels(0, 1)), prep) == []
    with pytest.raises(InputError, match=r"run from 0 to 255 \(RMS 1\d\d\): they are not scaled"):
        check_images(examine(_pixels(0, 255)), prep)


@pytest.mark.parametrize(
    ("shift", "spread", "outcome"),
    [
        (0.0, 1.0, "fine"),
        (0.9, 0.6, "fine"),
        (-1.8, 1.5, "warned"),
        (0.0, 0.3, "warned"),
        (0.0, 2.5, "warned"),
        (4.5, 1.0, "refused"),
        (0.0, 6.0, "refused"),
        (0.1, 0.004, "refused"),  # divided by 255 twice
        (400.0, 250.0, "refused"),
    ],
)
def test_other_than_mean_0_and_deviation_1(shift: float, spread: float, outcome: str) -> None:
    facts = examine(_smooth(120) * np.float32(spread) + np.float32(shift))
    if outcome == "refused":
        with pytest.raises(InputError, match=rf"mean {shift:.2f} and deviation {spread:.2f} .*\nThey are not scaled"):
            check_images(facts, PREP)
    else:
        said = check_images(facts, PREP)
        assert len(said) == (outcome == "warned")
        assert all(f"mean {shift:.2f} and deviation {spread:.2f}" in each for each in said)


def test_one_channel_of_three_can_be_wrong() -> None:
    images = _smooth(120, 3)
    images[:, 1] *= 9
    with pytest.raises(InputError, match=r"deviation (9|8\.9)"):
        check_images(examine(images), replace(PREP, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3))


def test_not_finite() -> None:
    images = _smooth(70)
    images[41, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match=r"calibration image 41 .* is not finite"):
        examine(images)


def test_one_class_only() -> None:
    assert check_labels(np.array([3, 3, 3]), ("a", "b", "c", "d")) == [
        "all calibration images are of one class of 4 (d)"
    ]
    assert check_labels(np.array([3, 1]), ("a", "b", "c", "d")) == []
    assert check_labels(np.array([0, 0]), ("only",)) == []


def test_numbers_that_keep_the_scale_of_bytes_are_no_doubt() -> None:
    """Caffe subtracts a mean from 0..255 and divides by nothing: the deviation is far from 1, and nothing is wrong."""
    split = load_split("digits", "train", height_px=8, width_px=8, channels=1).first(120)
    prep = Preprocess(height_px=8, width_px=8, channels=1, mean=(110 / 255,), std=(1 / 255,))
    facts = examine(PreparedImages(split.images, prep))
    assert facts.std[0] > 50
    assert check_images(facts, prep) == []
    with pytest.raises(InputError, match="they are not scaled"):
        check_images(replace(facts, rms=255 * facts.rms), prep)
