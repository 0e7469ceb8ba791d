import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.tasks.classification import accuracy, accuracy_by_class, answers, likeliest

LOGITS = np.array([[1, 3, 2], [0, -1, -2], [5, 5.5, 9]], np.float32)


def test_an_answer_is_the_index_of_the_largest_number():
    assert answers(LOGITS, ("a", "b", "c"), name="net").tolist() == [1, 0, 2]
    assert answers(LOGITS, ("a", "b"), name="net").tolist() == [1, 0, 2]  # one more than there are classes


@pytest.mark.parametrize("logits", [LOGITS[:, :2], LOGITS[:, :, None], LOGITS[0]])
def test_numbers_that_are_not_one_per_class_are_refused(logits):
    with pytest.raises(InputError, match=r"net gives \(.*\) numbers per image; 3 classes"):
        answers(logits, ("a", "b", "c"), name="net")


def test_the_likeliest_classes_come_with_their_softmax_scores():
    first, second = likeliest(LOGITS[0], ("a", "b"), 2)
    wanted = np.exp(LOGITS[0].astype(float)) / np.exp(LOGITS[0].astype(float)).sum()
    assert (first.label, second.label) == ("b", "2")  # the last class has no name
    assert [first.score, second.score] == pytest.approx([wanted[1], wanted[2]])
    (only,) = likeliest(np.array([[1e4, -1e4]], np.float32), ())
    assert (only.label, only.score) == ("0", 1.0)


def test_accuracy_is_the_share_that_is_right_per_class_too():
    found, labels = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 2, 2])
    assert accuracy(found, labels) == pytest.approx(0.6)
    assert accuracy_by_class(found, labels, ("a", "b", "c", "none of it")) == {"a": 1.0, "b": 1.0, "c": 0.333333}
