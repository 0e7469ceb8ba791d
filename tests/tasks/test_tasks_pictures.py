import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.frame import placement
from msn_deploy.tasks.pictures import Pictures, psnr_db, ssim

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
FIRST = PICTURES.transpose(0, 3, 1, 2)


def pictures(outputs, placements=None, **options):
    return np.stack([each.pixels for each in Pictures(given(**options)).answers({"y": outputs}, placements)])


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (FIRST / np.float32(255), {}),
        (FIRST / np.float32(127.5) - 1, {"range": "-1..1"}),
        (FIRST.astype(np.float16), {"range": "0..255"}),
        (FIRST, {}),
        (PICTURES / np.float32(255), {}),
        (PICTURES / np.float32(255), {"layout": "nhwc"}),
        (FIRST[:, ::-1] / np.float32(255), {"colour": "bgr"}),
    ],
)
def test_a_picture_has_the_bytes_that_the_numbers_stand_for(outputs, options):
    np.testing.assert_array_equal(pictures(outputs, **options), PICTURES)


def test_grey_pictures_and_numbers_beyond_black_and_white():
    assert pictures(np.array([[[-0.2, 0.5, 1.3]]])).tolist() == [[[[0], [128], [255]]]]


def test_a_picture_is_brought_to_the_image_and_stays_larger_than_it():
    frame = Frame(height_px=8, width_px=8, channels=3, fit="letterbox")
    large = np.zeros((1, 3, 16, 16))
    large[:, :, 4:12] = 1  # what is not canvas, at twice the size
    assert pictures(large, [placement(16, 8, frame)], frame=(8, 8)).shape == (1, 16, 32, 3)
    assert (pictures(large, [placement(16, 8, frame)], frame=(8, 8))[:, 1:-1] == 255).all()
    tall = pictures(large.transpose(0, 1, 3, 2), [placement(8, 16, frame)], frame=(8, 8))
    assert (tall.shape, tall[:, :, 1:-1].min()) == ((1, 32, 16, 3), 255)
    assert pictures(large, frame=(8, 8)).shape == (1, 16, 16, 3)
    same = Frame(height_px=16, width_px=20, channels=3)
    np.testing.assert_array_equal(pictures(FIRST, [placement(20, 16, same)] * 3, frame=(16, 20)), PICTURES)
    crop = Frame(height_px=8, width_px=8, channels=3, fit="crop")
    (cropped,) = pictures(np.ones((1, 3, 8, 8)), [placement(16, 8, crop)], frame=(8, 8))
    assert (cropped[0, :, 0] == [0] * 4 + [255] * 8 + [0] * 4).all()


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (np.zeros((1, 2, 4, 5)), {}, "2x4x5 numbers per image; a picture has 1 or 3 channels"),
        (np.zeros((1, 3, 4, 5)), {"layout": "nhwc"}, "3x4x5 numbers"),
        (np.zeros((1, 3)), {}, "3 numbers"),
        (FIRST, {"range": "0-1"}, "unknown `--read range=0-1`"),
        (FIRST, {"color": "bgr"}, "did you mean 'colour'"),
        (FIRST, {"classes": "ab", "named": True}, "names 2 classes; its task has none"),
    ],
)
def test_other_outputs_and_other_readings_are_refused(outputs, options, message):
    with pytest.raises(InputError, match=message):
        pictures(outputs, **options)


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match="1 of 24 outputs are not finite"):
        pictures(spoiled((2, 3, 2, 2), (1, 0, 0, 0)))


def ssim_by_hand(x, y):
    """Wang et al. 2004, equations 13 to 16, window by window."""
    x, y = x.astype(float), y.astype(float)
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for channel in range(x.shape[2]):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (each[top : top + 11, left : left + 11, channel] for each in (x, y))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                both = (weights * (a - ma) * (b - mb)).sum()
                found.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(found)


def test_ssim_is_that_of_each_window_by_itself():
    noisy = np.clip(PICTURES[0] + RNG.normal(scale=40, size=PICTURES[0].shape), 0, 255).astype(np.uint8)
    assert ssim(noisy, PICTURES[0]) == pytest.approx(ssim_by_hand(noisy, PICTURES[0]), abs=1e-12)
    assert 0.3 < ssim(noisy, PICTURES[0]) < 0.99
    assert ssim(PICTURES[0], PICTURES[0]) == pytest.approx(1)
    assert ssim(PICTURES[0], PICTURES[1]) == pytest.approx(ssim_by_hand(PICTURES[0], PICTURES[1]), abs=1e-12)


def test_psnr_is_bounded_for_equal_pictures():
    assert psnr_db(PICTURES[0], PICTURES[0]) == 100
    off_by_one = np.where(PICTURES[0] < 255, PICTURES[0] + 1, 254).astype(np.uint8)
    assert psnr_db(off_by_one, PICTURES[0]) == pytest.approx(48.1308036, abs=1e-6)  # 20 log10(255)
    assert psnr_db(np.zeros((1, 1, 1), np.uint8), np.full((1, 1, 1), 255, np.uint8)) == pytest.approx(0)


def test_the_metric_is_the_mean_over_the_images():
    wanted = np.clip(PICTURES + RNG.normal(scale=20, size=PICTURES.shape), 0, 255).astype(np.uint8)
    wanted[2] = PICTURES[2]
    task = Pictures(given())
    meter = task.meter()
    for part in (slice(0, 1), slice(1, 3)):
        meter.add(task.answers({"y": FIRST[part]}), wanted[part])
    score = meter.score()
    each = [10 * np.log10(255**2 / ((PICTURES[at].astype(float) - wanted[at]) ** 2).mean()) for at in range(2)] + [100]
    assert (score.metric, score.unit, score.samples, score.unit_of_others) == ("PSNR", "dB", 3, "")
    np.testing.assert_allclose(score.each, each)
    assert score.value == pytest.approx(np.mean(each))
    assert score.others["ssim"] == pytest.approx(np.mean([ssim(PICTURES[at], wanted[at]) for at in range(3)]))


def test_labels_are_of_the_pictures_size_and_small_ones_have_no_ssim():
    task = Pictures(given())
    meter = task.meter()
    with pytest.raises(InputError, match=r"a picture of 16x20x3 numbers .* does not fit one of 8x10x3"):
        meter.add(task.answers({"y": FIRST}), PICTURES[:, ::2, ::2])
    meter = task.meter()
    meter.add(task.answers({"y": FIRST[:, :, :10]}), PICTURES[:, :10])
    assert meter.score().others == {}


def test_an_answer_is_the_picture_itself():
    (grey,) = Pictures(given()).answers({"y": np.full((1, 4, 6), 0.5)})
    assert grey.text() == "6x4 grey, mean 128.0"
    assert grey.to_json() == {"width": 6, "height": 4, "channels": 1, "mean": [128.0]}
    assert json.loads(json.dumps(grey.to_json())) == grey.to_json()
    assert grey.drawn(np.zeros((4, 6, 3), np.uint8)).tolist() == np.full((4, 6, 3), 128).tolist()
