import numpy as np
import pytest

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.tasks.classification import accuracy, accuracy_by_class, answers, ending_of, likeliest, scores_of

LOGITS = np.array([[1, 3, 2], [0, -1, -2], [5, 5.5, 9]], np.float32)
SOFTMAX = np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True)


def test_an_answer_is_the_index_of_the_largest_number():
    assert answers(LOGITS, ("a", "b", "c"), name="net").tolist() == [1, 0, 2]
    assert answers(LOGITS[:, :, None, None], ("a", "b", "c"), name="net").tolist() == [1, 0, 2]
    assert answers(LOGITS, ("a", "b"), name="net", named=True).tolist() == [1, 0, 2]  # the net knows why it has more


@pytest.mark.parametrize(("count", "classes", "named"), [(2, "abc", False), (2, "abc", True), (3, "ab", False)])
def test_fewer_or_more_numbers_than_classes_are_refused(count, classes, named):
    with pytest.raises(InputError, match=f"net gives {count} numbers per image, .*; the data has {len(classes)}"):
        answers(LOGITS[:, :count], tuple(classes), name="net", named=named)


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 5, 84), (3,)])
def test_what_is_not_one_number_per_class_is_refused(shape):
    with pytest.raises(InputError, match="a classifier gives one for each class"):
        scores_of(np.ones(shape), name="net")


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_no_answer(spoil):
    spoiled = LOGITS.copy()
    spoiled[1, 0] = spoil
    with pytest.raises(GateError, match=r"1 of 9 outputs are not finite .*, for 1 of 3 images"):
        answers(spoiled, ("a", "b", "c"), name="net")


@pytest.mark.parametrize(
    ("ending", "outputs"),
    [
        ("logits", LOGITS),
        ("softmax", SOFTMAX),
        ("log-softmax", np.log(SOFTMAX)),
        ("unknown", SOFTMAX),
        ("unknown", LOGITS),
    ],
)
def test_scores_are_probabilities_whatever_the_network_ends_in(ending, outputs):
    np.testing.assert_allclose(scores_of(outputs, ending=ending, name="net"), SOFTMAX, rtol=1e-6)


def test_one_number_is_that_of_the_second_of_two_classes():
    assert answers(np.array([[0.3], [0.7]]), ("no", "yes"), name="net", ending="sigmoid").tolist() == [0, 1]
    assert answers(np.array([[-0.7], [0.3]]), ("no", "yes"), name="net", ending="logits").tolist() == [0, 1]
    np.testing.assert_allclose(scores_of(np.array([[np.log(3)]]), name="net"), [[0.25, 0.75]])
    with pytest.raises(InputError, match="its graph is not here"):
        scores_of(np.array([[0.3]]), ending="unknown", name="net")
    labels = scores_of(np.array([[0.9, 0.8, 0.1]]), ending="sigmoid", name="net")
    np.testing.assert_allclose(labels, [[0.9, 0.8, 0.1]])


@pytest.mark.parametrize(
    ("nodes", "ending"),
    [
        ("y = Relu(x)", "logits"),
        ("y = Softmax<axis=1>(x)", "softmax"),
        ("s = Softmax<axis=1>(x) c = Cast<to=10>(s) f = Flatten(c) y = Cast<to=1>(f)", "softmax"),
        ("y = LogSoftmax<axis=1>(x)", "log-softmax"),
        ("s = Sigmoid(x) y = Identity(s)", "sigmoid"),
        ("s = Softmax<axis=1>(x) y = Neg(s)", "logits"),
        ("y = Identity(x)", "logits"),
    ],
)
def test_the_graph_tells_what_its_numbers_are(nodes, ending):
    onnx = pytest.importorskip("onnx")
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}'
    assert ending_of(onnx.parser.parse_model(text)) == ending


def test_the_likeliest_classes_come_with_their_scores():
    first, second = likeliest(LOGITS[:1], ("a", "b"), 2, name="net")
    assert (first.label, second.label) == ("b", "2")  # the last class has no name
    assert [first.score, second.score] == pytest.approx([SOFTMAX[0, 1], SOFTMAX[0, 2]])
    (only,) = likeliest(np.array([[1e4, -1e4]], np.float32), (), name="net")
    assert (only.label, only.score) == ("0", 1.0)


def test_accuracy_is_the_share_that_is_right_per_class_too():
    found, labels = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 2, 2])
    assert accuracy(found, labels) == pytest.approx(0.6)
    assert accuracy_by_class(found, labels, ("a", "b", "c", "none of it")) == {"a": 1.0, "b": 1.0, "c": 0.333333}
