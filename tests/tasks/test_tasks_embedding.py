import json

import numpy as np
import pytest
from tasks_given import given, spoiled

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.tasks import embedding
from msn_deploy.tasks.embedding import Embedding

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 6, 90)
VECTORS = (RNG.normal(size=(6, 8))[LABELS] + 1.2 * RNG.normal(size=(90, 8))).astype(np.float32)


def score_of(vectors, labels, classes="abcdef"):
    task = Embedding(given(classes))
    meter = task.meter()
    for part in (slice(0, 40), slice(40, None)):
        meter.add(task.answers({"y": vectors[part]}), labels[part])
    return meter.score()


def by_hand(vectors, labels):
    """Compare each with each other, one at a time."""
    count = len(vectors)
    cosines = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors.astype(float)] for a in vectors.astype(float)]
    )
    first, among = [], []
    for at in range(count):
        order = sorted((other for other in range(count) if other != at), key=lambda other: -cosines[at, other])
        first.append(labels[order[0]] == labels[at])
        among.append(any(labels[other] == labels[at] for other in order[:5]))
    pairs = [(a, b) for a in range(count) for b in range(a)]
    same = np.array([cosines[a, b] for a, b in pairs if labels[a] == labels[b]])
    other = np.array([cosines[a, b] for a, b in pairs if labels[a] != labels[b]])
    tars = [(same >= at).mean() for at in np.unique(cosines) if (other >= at).mean() <= 0.01]
    return np.array(first), np.array(among), max(tars)


@pytest.mark.parametrize("at_once", [4_000_000, 700, 1])
def test_recall_and_verification_are_those_of_a_count_by_hand(monkeypatch, at_once):
    monkeypatch.setattr(embedding, "_PAIRS", at_once)
    score = score_of(VECTORS, LABELS)
    first, among, tar = by_hand(VECTORS, LABELS)
    assert 0.3 < first.mean() < 0.95  # there is something to tell
    assert (score.metric, score.unit, score.samples) == ("recall@1", "share", 90)
    np.testing.assert_array_equal(score.each, first)
    assert score.value == first.mean()
    assert score.others["recall_at_5"] == among.mean()
    assert score.others["tar_at_far_1pct"] == pytest.approx(tar, abs=0.005)
    assert score.per_class == {
        name: pytest.approx(first[label == LABELS].mean(), abs=1e-6) for label, name in enumerate("abcdef")
    }


def test_the_length_of_a_vector_does_not_count():
    assert (
        score_of(VECTORS * RNG.uniform(0.1, 10, (90, 1)), LABELS).each.tolist()
        == score_of(VECTORS, LABELS).each.tolist()
    )


def test_who_is_alone_in_a_class_is_not_counted():
    labels = np.array([0, 0, 1, 2, 2])
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.05], [0, 1], [0.1, 1]])
    score = score_of(vectors, labels)
    assert (score.samples, score.per_class) == (4, {"a": 0.0, "c": 1.0})
    with pytest.raises(InputError, match="no class has two images"):
        score_of(VECTORS[:3], np.arange(3))
    assert set(score_of(VECTORS[:4], np.zeros(4, int)).others) == {"recall_at_5"}


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (np.zeros((2, 8, 4)), {}, "8x4 numbers per image; an embedding is one vector"),
        (np.zeros((2, 8)), {"ending": "logits"}, "unknown `--read ending=logits`"),
        (np.zeros((2, 8)), {"classes": "ab", "named": True}, "names 2 classes; its task has none"),
    ],
)
def test_other_outputs_and_other_readings_are_refused(outputs, options, message):
    with pytest.raises(InputError, match=message):
        Embedding(given(**options)).answers({"y": outputs})


def test_numbers_that_are_none_are_no_answer():
    with pytest.raises(GateError, match="1 of 16 outputs are not finite"):
        Embedding(given()).answers({"y": spoiled((2, 8), (1, 3))})


def test_an_answer_is_its_vector():
    (answer,) = Embedding(given()).answers({"y": np.array([[0.6, 0.0, -0.8, 0, 0]]).reshape(1, 5, 1, 1)})
    assert answer.text() == "5 numbers, norm 1: 0.6, 0, -0.8, 0, ..."
    assert json.loads(json.dumps(answer.to_json()))["vector"] == pytest.approx([0.6, 0, -0.8, 0, 0])
    assert answer.drawn(np.zeros((40, 300, 3), np.uint8)).any()
