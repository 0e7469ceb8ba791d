import numpy as np
import pytest
from tasks_given import given

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.tasks.classification import Classification, scores_of
from msn_deploy.tasks.task import ending_of

LOGITS = np.array([[1, 3, 2], [0, -1, -2], [5, 5.5, 9]], np.float32)
SOFTMAX = np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True)


def answers(outputs, classes=(), **options):
    return Classification(given(classes, **options)).answers({"y": outputs})


def best(outputs, classes=(), **options):
    return [answer.index for answer in answers(outputs, classes, **options)]


def test_an_answer_is_the_index_of_the_largest_number():
    assert best(LOGITS, "abc") == [1, 0, 2]
    assert best(LOGITS[:, :, None, None], "abc") == [1, 0, 2]
    assert best(LOGITS, "ab", named=True) == [1, 0, 2]  # the net knows why it has more
    assert best(LOGITS) == [1, 0, 2]


@pytest.mark.parametrize(
    ("count", "classes", "named", "told"),
    [(2, "abc", False, "the data has 3"), (2, "abc", True, "its names are 3"), (3, "ab", False, "the data has 2")],
)
def test_fewer_or_more_numbers_than_classes_are_refused(count, classes, named, told):
    with pytest.raises(InputError, match=f"net gives {count} numbers per image, .*; {told}"):
        answers(LOGITS[:, :count], classes, named=named)


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 5, 84), (3,)])
def test_what_is_not_one_number_per_class_is_refused(shape):
    with pytest.raises(InputError, match="a classifier gives one for each class"):
        scores_of(np.ones(shape), name="net")


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_no_answer(spoil):
    spoiled = LOGITS.copy()
    spoiled[1, 0] = spoil
    with pytest.raises(GateError, match=r"1 of 9 outputs are not finite .*, for 1 of 3 images"):
        answers(spoiled, "abc")


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
    assert best(np.array([[0.3], [0.7]]), ("no", "yes"), ending="sigmoid") == [0, 1]
    assert best(np.array([[-0.7], [0.3]]), ("no", "yes"), ending="logits") == [0, 1]
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
        ("s = Sigmoid(x) r = Relu(x) t = Sigmoid(r) y = Concat<axis=0>(s, t)", "sigmoid"),
        ("s = Sigmoid(x) t = Softmax<axis=1>(x) y = Concat<axis=0>(s, t)", "logits"),
        ("s = Sigmoid(x) y = Concat<axis=0>(s, x)", "logits"),
        ("a = Sigmoid(x) roi = Constant<value_floats: floats = [1.0]>() y = Resize(a, roi, roi)", "sigmoid"),
    ],
)
def test_the_graph_tells_what_its_numbers_are(nodes, ending):
    onnx = pytest.importorskip("onnx")
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}'
    assert ending_of(onnx.parser.parse_model(text)) == ending


def test_the_likeliest_classes_come_with_their_scores():
    first, second, third = answers(LOGITS[:1], ("a", "b"), named=True)[0].guesses
    assert (first.label, second.label, third.label) == ("b", "2", "a")  # the last class has no name
    assert [first.score, second.score] == pytest.approx([SOFTMAX[0, 1], SOFTMAX[0, 2]])
    (only,) = answers(np.array([[1e4, -1e4]], np.float32))
    assert (only.text(), only.to_json()["label"]) == ("0  100.0%", "0")
    assert len(answers(np.zeros((1, 8)))[0].guesses) == 5


def test_the_output_that_is_read_is_named_where_there_are_several():
    outputs = {"aux": -LOGITS, "y": LOGITS}
    assert [a.index for a in Classification(given(outputs=("aux", "y"), output="y")).answers(outputs)] == [1, 0, 2]
    with pytest.raises(InputError, match=r"2 outputs \(aux, y\); which of them is read is not said"):
        Classification(given(outputs=("aux", "y")))
    with pytest.raises(InputError, match="there is no z"):
        Classification(given(outputs=("aux", "y"), output="z"))


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"outptu": "y"}, "unknown `--read outptu=y`; did you mean 'output'"),
        ({"ending": "soft-max"}, "unknown `--read ending=soft-max`; did you mean 'softmax'"),
        ({"head": "yolov8"}, "known are: output, ending"),
    ],
)
def test_what_the_task_does_not_read_is_refused(reading, message):
    with pytest.raises(InputError, match=message):
        Classification(given(**reading))


def test_what_the_numbers_are_is_told_by_the_graph_unless_it_is_said():
    assert answers(SOFTMAX, graph="softmax") == answers(SOFTMAX, graph="unknown")
    assert answers(SOFTMAX, graph="logits") != answers(SOFTMAX, graph="softmax")
    assert answers(SOFTMAX, graph="logits", ending="softmax") == answers(SOFTMAX, graph="softmax")


def test_accuracy_is_the_share_that_is_right_per_class_too():
    found, labels = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 2, 2])
    task = Classification(given(("a", "b", "c", "none of it")))
    meter = task.meter()
    outputs = np.eye(4)[found]
    for part in (slice(0, 2), slice(2, 5)):
        meter.add(task.answers({"y": outputs[part]}), labels[part])
    score = meter.score()
    assert (score.metric, score.unit, score.samples, score.others) == ("accuracy", "share", 5, {})
    assert score.value == pytest.approx(0.6)
    assert score.each.tolist() == [1, 1, 0, 1, 0]
    assert score.per_class == {"a": 1.0, "b": 1.0, "c": 0.333333}


def test_the_five_likeliest_are_counted_where_there_are_more_classes():
    task = Classification(given("abcdef"))
    meter = task.meter()
    meter.add(task.answers({"y": np.array([[9, 8, 7, 6, 5, 4.0], [9, 8, 7, 6, 5, 4.0]])}), np.array([4, 5]))
    assert (meter.score().value, meter.score().others) == (0.0, {"top5": 0.5})
