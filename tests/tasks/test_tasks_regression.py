import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.tasks.regression import Regression

RNG = np.random.default_rng(0)


def values(outputs, classes=(), **reading):
    return np.stack([each.values for each in Regression(given(classes, **reading)).answers({"y": outputs})])


def test_values_are_the_networks_numbers_or_what_they_were_before_they_were_normalised():
    outputs = np.array([[1, 2], [3, 4]], np.float16)
    assert values(outputs).tolist() == [[1, 2], [3, 4]]
    assert values(outputs, mean="10", std="2").tolist() == [[12, 14], [16, 18]]
    assert values(outputs, mean="10,20", std="1,0.5").tolist() == [[11, 21], [13, 22]]
    assert values(np.array([1.0, 2.0])).tolist() == [[1], [2]]
    assert values(np.arange(8.0).reshape(2, 2, 2), "abcd").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_answer_names_its_values():
    (answer,) = Regression(given(("age", "height"))).answers({"y": np.array([[31.25, 1.78]])})
    assert answer.text() == "age 31.25, height 1.78"
    assert answer.to_json() == {"values": {"age": 31.25, "height": 1.78}}
    assert json.loads(json.dumps(answer.to_json())) == answer.to_json()
    (many,) = Regression(given()).answers({"y": np.arange(20.0)[None]})
    assert many.text().endswith("7 7, 12 more")


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"classes": "abc"}, "gives 2 values per image; there are 3 names"),
        ({"mean": "1,2,3"}, "there are 3 means"),
        ({"std": "1,2,3"}, "there are 3 deviations"),
        ({"std": "0"}, "std is above 0"),
        ({"mean": "one"}, "`--read mean=one` is not a number"),
        ({"std": "inf"}, "is not a number"),
        ({"means": "1"}, "did you mean 'mean'"),
    ],
)
def test_what_does_not_suit_is_refused(reading, message):
    with pytest.raises(InputError, match=message):
        values(np.zeros((1, 2)), **reading)


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match="1 of 4 outputs are not finite"):
        values(spoiled((2, 2), (1, 0)))


def test_the_metrics_are_those_of_the_errors():
    labels = RNG.normal(size=(30, 3)) * [1, 10, 0] + [0, 5, 7]  # the last is always the same
    outputs = labels + RNG.normal(size=labels.shape)
    task = Regression(given(("a", "b", "c")))
    meter = task.meter()
    for part in (slice(0, 10), slice(10, 30)):
        meter.add(task.answers({"y": outputs[part]}), labels[part])
    score = meter.score()
    errors = np.abs(outputs - labels)
    assert (score.metric, score.unit, score.higher_is_better, score.samples) == ("MAE", "", False, 30)
    assert score.value == pytest.approx(errors.mean(), abs=1e-12)
    np.testing.assert_allclose(score.each, errors.mean(1))
    assert score.per_class == {name: pytest.approx(errors[:, at].mean(), abs=1e-6) for at, name in enumerate("abc")}
    assert score.others == {
        "rmse": pytest.approx(np.sqrt((errors**2).mean())),
        "r2": pytest.approx(1 - np.mean((errors**2).mean(0)[:2] / labels.var(0)[:2])),
    }
    with pytest.raises(InputError, match="the data has 2 values per image, the model gives 3"):
        task.meter().add(task.answers({"y": outputs}), labels[:, :2])
