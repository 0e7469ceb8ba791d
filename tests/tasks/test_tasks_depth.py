import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.frame import placement
from msn_deploy.tasks.depth import Depth

RNG = np.random.default_rng(0)
DEPTHS = RNG.uniform(1, 10, (5, 6, 8)).astype(np.float32)


def answers(outputs, placements=None, **options):
    return Depth(given(**options)).answers({"y": outputs}, placements)


def measured(outputs, labels, **options):
    task = Depth(given(**options))
    meter = task.meter()
    for part in (slice(0, 2), slice(2, None)):
        meter.add(task.answers({"y": outputs[part]}), labels[part, ..., None])
    return meter.score()


@pytest.mark.parametrize("shape", [(5, 6, 8), (5, 1, 6, 8), (5, 6, 8, 1)])
def test_a_depth_is_one_number_for_each_pixel(shape):
    np.testing.assert_array_equal([each.map for each in answers(DEPTHS.reshape(shape))], DEPTHS)


def test_maps_are_scaled_to_the_frame_and_brought_to_the_image():
    (answer,) = answers(np.array([[[1.0, 2.0]]]), frame=(2, 4))
    np.testing.assert_allclose(answer.map, [[1, 1.25, 1.75, 2]] * 2)
    crop = Frame(height_px=2, width_px=2, channels=3, fit="crop")
    (answer,) = answers(np.array([[[1.0, 2.0]] * 2]), [placement(4, 2, crop)], frame=(2, 2))
    np.testing.assert_array_equal(answer.map, [[np.nan, 1, 2, np.nan]] * 2)
    assert answer.text() == "1 to 2, median 1.5"


def by_hand(depths, labels):
    each = []
    for depth, label in zip(depths, labels, strict=True):
        absrel, mae, square, close, count = 0.0, 0.0, 0.0, 0, 0
        for found, wanted in zip(depth.ravel().tolist(), label.ravel().tolist(), strict=True):
            if wanted > 0:  # not for NaN
                count += 1
                absrel += abs(found - wanted) / wanted
                mae += abs(found - wanted)
                square += (found - wanted) ** 2
                close += max(found / wanted, wanted / found) < 1.25
        each.append((absrel / count, mae / count, np.sqrt(square / count), close / count))
    return np.array(each)


def labels_for(depths):
    labels = depths * RNG.uniform(0.7, 1.4, depths.shape).astype(np.float32)
    labels[:, 0] = 0
    labels[:, 1] = np.nan
    return labels


def test_the_metrics_are_those_of_a_count_by_hand():
    labels = labels_for(DEPTHS)
    score, each = measured(DEPTHS, labels), by_hand(DEPTHS, labels)
    assert (score.metric, score.unit, score.higher_is_better, score.samples) == ("AbsRel", "", False, 5)
    np.testing.assert_allclose(score.each, each[:, 0])
    assert score.value == pytest.approx(each[:, 0].mean())
    assert score.others == {
        name: pytest.approx(value) for name, value in zip(("mae", "rmse", "delta1"), each.mean(0)[1:], strict=True)
    }


def test_what_is_not_measured_does_not_count_and_neither_does_an_image_without_any():
    labels = labels_for(DEPTHS)
    labels[3] = 0
    kept = [0, 1, 2, 4]
    assert measured(DEPTHS, labels).samples == 4
    assert measured(DEPTHS, labels).value == pytest.approx(by_hand(DEPTHS[kept], labels[kept])[:, 0].mean())
    with pytest.raises(InputError, match="hold no depth above 0"):
        measured(DEPTHS, np.full_like(labels, np.nan))


@pytest.mark.parametrize(
    ("scale", "made"),
    [
        ("metric", lambda depth: depth),
        ("inverse", lambda depth: 1 / depth),
        ("relative", lambda depth: 0.01 * depth),
        ("relative-inverse", lambda depth: 40 / depth + 3),
    ],
)
def test_each_scale_gives_the_depths_that_it_was_made_of(scale, made):
    outputs = made(DEPTHS).astype(np.float32)
    score = measured(outputs, DEPTHS, scale=scale)
    assert score.value < 1e-5
    assert score.others["delta1"] == 1.0
    assert measured(2 * outputs + 0.5, DEPTHS, scale=scale).value < 1e-5 or scale != "relative-inverse"


def test_an_inverse_that_is_not_above_0_is_far_away():
    labels = np.array([[[2.0, 4.0, 8.0]]] * 3)
    outputs = np.array([[[0.5, 0.0, -1.0]]] * 3)
    (answer, *_) = answers(outputs, scale="inverse")
    assert answer.depths().tolist() == [[2.0, np.inf, np.inf]]
    assert measured(outputs, labels, scale="inverse").value == pytest.approx((0 + 1 + 0) / 3)  # as far as the farthest
    assert measured(outputs, labels, scale="inverse", max="6").value == pytest.approx(0.5 / 2)  # 8 is not measured
    assert measured(100 * labels, labels, max="10").others["mae"] == pytest.approx((8 + 6 + 2) / 3)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (np.zeros((1, 2, 4, 4)), {}, "2x4x4 numbers per image; depths are one for each pixel"),
        (np.zeros((1, 4)), {}, "4 numbers per image"),
        (DEPTHS, {"scale": "inverted"}, "did you mean 'inverse'"),
        (DEPTHS, {"max": "-1"}, "one number above 0"),
        (DEPTHS, {"max": "far"}, "is not a number"),
        (DEPTHS, {"output": "z"}, "there is no z"),
        (DEPTHS, {"classes": "ab", "named": True}, "names 2 classes; its task has none"),
    ],
)
def test_other_outputs_and_other_readings_are_refused(outputs, options, message):
    with pytest.raises(InputError, match=message):
        answers(outputs, **options)


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match="1 of 32 outputs are not finite"):
        answers(spoiled((2, 1, 4, 4), (0, 0, 1, 1)))


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match="does not fit labels"):
        measured(DEPTHS, DEPTHS[:, :3])


def test_an_answer_says_how_far_it_reaches_and_draws_the_near_in_yellow():
    (answer,) = answers(np.array([[[1.0, 2.0], [3.0, 8.0]]]))
    assert answer.text() == "1 to 8, median 2.5"
    told = answer.to_json()
    assert told == {"width": 2, "height": 2, "scale": "metric", "min": 1.0, "median": 2.5, "max": 8.0}
    assert json.loads(json.dumps(told)) == told
    made = answer.drawn(np.zeros((2, 2, 3), np.uint8))
    assert made[75, 5].tolist() == [253, 231, 37]
    assert made[-1, -1].tolist() == [20, 11, 82]
    (inverse,) = answers(np.array([[[1.0, 0.5], [1 / 3, 0.125]]]), scale="relative-inverse")
    np.testing.assert_array_equal(inverse.drawn(np.zeros((2, 2, 3), np.uint8))[75, 5], made[75, 5])
    assert inverse.text() == "0.125 to 1, median 0.4167 (relative-inverse)"
    (flat,) = answers(np.zeros((1, 4, 4)), scale="inverse")
    assert flat.text() == "0 to 0, median 0"
    assert flat.drawn(np.zeros((4, 4, 3), np.uint8)).shape == (160, 160, 3)
