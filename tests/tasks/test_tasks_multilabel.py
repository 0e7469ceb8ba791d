import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.tasks.multilabel import MultiLabel, average_precision

RNG = np.random.default_rng(0)
CLASSES = ("dog", "ball", "tree")
ODDS = np.log(np.array([[3.0, 1 / 9, 1.0], [1 / 3, 1 / 3, 1 / 3]]))  # 0.75, 0.1, 0.5; all 0.25


def answers(outputs, classes=CLASSES, **options):
    return MultiLabel(given(classes, **options)).answers({"y": outputs})


def test_labels_hold_from_the_threshold_on():
    first, second = answers(ODDS)
    assert [each.label for each in first.labels] == ["dog", "tree"]
    assert (first.text(), second.text()) == ("dog 75.0%, tree 50.0%", "no label (the surest: dog 25.0%)")
    assert [each.label for each in answers(ODDS, threshold="0.2")[1].labels] == ["dog", "ball", "tree"]
    assert [each.label for each in answers(ODDS, threshold="0.51")[0].labels] == ["dog"]
    told = first.to_json()
    assert told["labels"][0] == {"label": "dog", "score": pytest.approx(0.75)}
    assert [each["label"] for each in told["top"]] == ["dog", "tree", "ball"]
    assert json.loads(json.dumps(told)) == told
    assert answers(ODDS, ())[0].labels[1].label == "2"


def test_probabilities_and_logits_are_told_apart_by_the_graph_or_by_what_is_said():
    probabilities = 1 / (1 + np.exp(-ODDS))
    for made in (
        answers(probabilities, graph="sigmoid"),
        answers(probabilities[..., None, None], graph="sigmoid"),
        answers(probabilities, graph="unknown", ending="sigmoid"),
    ):
        np.testing.assert_allclose([each.scores for each in made], probabilities)
    with np.errstate(over="raise"):
        assert answers(np.array([[-1e4, 1e4, 0.0]]))[0].scores.tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (ODDS[:, :2], {}, "gives 2 numbers per image, for 3 labels"),
        (np.zeros((2, 3, 4)), {}, "3x4 numbers per image; labels are one for each name"),
        (ODDS, {"graph": "softmax"}, "its numbers are softmax"),
        (ODDS, {"graph": "unknown"}, "its numbers are unknown"),
        (ODDS, {"threshold": "1"}, "one number between 0 and 1"),
        (ODDS, {"ending": "softmax"}, "unknown `--read ending=softmax`"),
    ],
)
def test_other_outputs_and_other_readings_are_refused(outputs, options, message):
    with pytest.raises(InputError, match=message):
        answers(outputs, **options)


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match=r"1 of 6 outputs are not finite"):
        answers(spoiled((2, 3), (1, 0)))


def by_hand(scores, right):
    """Go through every threshold that there is."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        held = scores >= threshold
        recall = (held & right).sum() / right.sum()
        total += (recall - before) * (held & right).sum() / held.sum()
        before = recall
    return total


def test_average_precision_is_that_of_a_count_by_hand_and_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for decimals in (1, 2, 8):  # with many equal scores, and with none
        scores, right = RNG.random(60).round(decimals), RNG.random(60) < 0.3
        assert average_precision(scores, right) == pytest.approx(by_hand(scores, right), abs=1e-12)
        assert average_precision(scores, right) == pytest.approx(metrics.average_precision_score(right, scores))
    assert average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])) == 1.0


def test_the_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = RNG.random((50, 4))
    labels = scores + RNG.normal(scale=0.4, size=scores.shape) > 0.6
    labels[:, 3] = False  # no image has it
    scores[:, 3] *= 0.4  # and it is never held
    task = MultiLabel(given((*CLASSES, "never"), graph="sigmoid"))
    meter = task.meter()
    for part in (slice(0, 20), slice(20, 50)):
        meter.add(task.answers({"y": scores[part]}), labels[part])
    score = meter.score()
    each = [metrics.average_precision_score(labels[:, at], scores[:, at]) for at in range(3)]
    assert (score.metric, score.unit, score.samples, score.each) == ("mAP", "share", 50, None)
    assert score.value == pytest.approx(np.mean(each), abs=1e-12)
    assert score.per_class == {name: pytest.approx(ap, abs=1e-6) for name, ap in zip(CLASSES, each, strict=True)}
    held = scores >= 0.5
    assert score.others == {
        "f1_micro": pytest.approx(metrics.f1_score(labels, held, average="micro")),
        "f1_macro": pytest.approx(metrics.f1_score(labels[:, :3], held[:, :3], average="macro")),
        "exact_match": pytest.approx(metrics.accuracy_score(labels, held)),
    }


def test_without_a_label_there_is_no_metric():
    task = MultiLabel(given(CLASSES))
    meter = task.meter()
    meter.add(task.answers({"y": ODDS}), np.zeros((2, 3), bool))
    with pytest.raises(InputError, match="no image has a label"):
        meter.score()
