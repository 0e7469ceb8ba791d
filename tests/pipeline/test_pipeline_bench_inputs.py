"""`bench` of networks that are no image classifiers: what they are fed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, parser, save
from onnx_fixtures import conv_net, stereo_net

from msn_deploy.bench import MeasureOptions
from msn_deploy.bench.gate import check_comparable
from msn_deploy.core.errors import InputError, InvalidMeasurement, NotComparable
from msn_deploy.engine import OrtRunner, load_runner
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.bench_inputs import batch_of, inputs_of

QUICK = MeasureOptions(seconds=0.2, block_ms=1, warmup_seconds=0, warmup_queries=2)
WIDTHS = tuple(parse_shapes(f"{name}=2x3x8x24") for name in ("left", "right"))


@pytest.fixture
def net(tmp_path):
    def write(model, name="net.onnx"):
        save(model, tmp_path / name)
        return tmp_path / name

    return write


def test_several_inputs_of_any_type_are_fed_by_name_at_the_shapes_that_are_given(net):
    path = net(stereo_net())
    result = bench([path], threads=1, options=QUICK, shapes=WIDTHS, layers=True)
    (arm,) = result.arms
    assert (result.profile.input, result.profile.batch) == ("random", 2)
    assert arm.facts.inputs == "left float32 2x3x8x24, right uint8 2x3x8x24, gain int64 no dimensions"
    assert arm.layers is not None
    assert arm.layers.cost.flops > 2 * 2 * 4 * 8 * 24 * 3 * 3 * 3  # the convolution's alone
    assert {layer.operator for layer in arm.layers.layers} >= {"Conv", "ArgMax"}


def test_random_feeds_are_seeded_and_of_their_type(net):
    runner = load_runner(net(stereo_net()), threads=1)
    one, again = (inputs_of(runner, batch=2, shapes=WIDTHS) for _ in range(2))
    for feeds, same in zip(one.feeds, again.feeds, strict=True):
        for name in feeds:
            np.testing.assert_array_equal(feeds[name], same[name])
    first = one.feeds[0]
    assert {name: array.dtype.name for name, array in first.items()} == {
        "left": "float32",
        "right": "uint8",
        "gain": "int64",
    }
    assert first["right"].max() > 200
    assert 0.8 < first["left"].std() < 1.2
    assert not np.array_equal(first["left"], one.feeds[1]["left"])
    assert one.images is None


def test_large_inputs_are_fewer(net, monkeypatch):
    runner = load_runner(net(conv_net()), threads=1)
    assert len(inputs_of(runner, batch=1).feeds) == 64
    monkeypatch.setattr("msn_deploy.pipeline.bench_inputs._MOST_BYTES", 7 * 3 * 8 * 8 * 4)
    assert len(inputs_of(runner, batch=1).feeds) == 7
    monkeypatch.setattr("msn_deploy.pipeline.bench_inputs._MOST_BYTES", 1)
    assert len(inputs_of(runner, batch=1).feeds) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"net.onnx leaves more than the batch open: input left .*\n.*--shapes left=1x3x8x64"),
        ({"shapes": WIDTHS[:1]}, "input right is anyx3x8xany"),
        ({"shapes": (*WIDTHS, parse_shapes("lift=1x3"))}, "no model has that input; did you mean 'left'"),
        ({"shapes": (parse_shapes("gain=1"), *WIDTHS)}, "gain of net.onnx has the fixed shape"),
        ({"shapes": WIDTHS, "batch": 3}, "fixed batch of 2, 3 was asked for"),
        ({"shapes": (parse_shapes("left=2x3x8x8:2x3x8x9:2x3x8x10"),)}, "is a range"),
    ],
)
def test_shapes_that_miss_or_do_not_fit_are_refused(net, options, words):
    with pytest.raises(InputError, match=words):
        bench([net(stereo_net())], threads=1, options=QUICK, **options)


def test_the_batch_is_the_one_that_files_fix(net):
    paths = [net(conv_net(batch=batch), f"{batch}.onnx") for batch in (4, "N", 2)]
    runners = [load_runner(path, threads=1) for path in paths]
    assert batch_of(runners[:2], None) == batch_of(runners[1::-1], None) == 4
    assert batch_of(runners[1:2], None) == 1
    assert batch_of(runners, 7) == 7
    with pytest.raises(InputError, match=r"4\.onnx has a fixed batch of 4 and 2\.onnx has a fixed batch of 2"):
        batch_of(runners, None)


def test_a_network_of_two_sizes_is_measured_apart(net):
    path = net(stereo_net())
    wider = tuple(parse_shapes(f"{name}=2x3x8x48") for name in ("left", "right"))
    one, other = (bench([path], threads=1, options=QUICK, shapes=shapes) for shapes in (WIDTHS, wider))
    with pytest.raises(NotComparable, match=r"inputs left float32 2x3x8x24.* against left float32 2x3x8x48"):
        check_comparable(one, other, source="base.json")


# State

COUNTING = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3] x, float[N,3] state) => (float[N,3] made, float[N,3] y)
<float two = {2.0}> { twice = Mul(state, two) made = Add(twice, x) y = Neg(made) }"""


def test_an_output_that_is_fed_back_starts_anew_with_every_pass_of_the_data(net, monkeypatch):
    """It doubles in every query: in an endless stream it would soon be infinite."""
    monkeypatch.setattr("msn_deploy.pipeline.bench_inputs._DIFFERENT", 5)
    path = net(parser.parse_model(COUNTING))
    most = []
    run = OrtRunner.run

    def watched(self, feeds):
        made = run(self, feeds)
        most.append(np.abs(made["made"]).max())
        return made

    monkeypatch.setattr(OrtRunner, "run", watched)
    (arm,) = bench([path], threads=1, options=QUICK, state={"made": "state"}, layers=True).arms
    assert arm.facts.inputs == "x float32 1x3"
    assert len(most) > 200
    assert 10 < max(most) < 3 * 2**6
    with pytest.raises(InputError, match=r"no output mde; did you mean 'made'"):
        bench([path], threads=1, options=QUICK, state={"mde": "state"})


# Data


@pytest.fixture
def feeds(tmp_path):
    rng = np.random.default_rng(3)
    arrays = {
        "left": rng.standard_normal((6, 3, 8, 24)).astype(np.float32),
        "right": rng.integers(0, 256, (6, 3, 8, 24)).astype(np.uint8),
        "gain": rng.integers(1, 4, 6),
    }
    np.savez(tmp_path / "feeds.npz", **arrays)
    return tmp_path / "feeds.npz", arrays


def test_feeds_from_a_file_are_what_is_measured_and_their_digest_is_kept(net, feeds):
    path, arrays = feeds
    model = net(stereo_net())
    runner = load_runner(model, threads=1)
    fed = inputs_of(runner, batch=1, data=str(path))
    assert len(fed.feeds) == 6
    for at, each in enumerate(fed.feeds):
        np.testing.assert_array_equal(each["left"], arrays["left"][at : at + 1])
        assert each["gain"] == arrays["gain"][at]
    result = bench([model], threads=1, options=QUICK, data=str(path))
    (arm,) = result.arms
    assert (result.profile.input, arm.facts.images.role) == ("real samples", "data:feeds")
    assert arm.facts.images.sha256 == fed.images.sha256
    assert arm.facts.inputs == "left float32 1x3x8x24, right uint8 1x3x8x24, gain int64 no dimensions"


def test_only_whole_queries_are_measured(net, tmp_path):
    runner = load_runner(net(conv_net(batch="N")), threads=1)
    images = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    fed = inputs_of(runner, batch=3, data=str(tmp_path / "x.npy"))
    assert [each["x"].shape for each in fed.feeds] == [(3, 3, 8, 8)] * 2
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in fed.feeds]), images[:6])
    with pytest.raises(InputError, match=r"x\.npy gives queries of 7 rows, 9 are needed"):
        inputs_of(runner, batch=9, data=str(tmp_path / "x.npy"))


def test_feeds_that_are_not_those_of_the_network_are_refused(net, feeds):
    runner = load_runner(net(stereo_net()), threads=1)
    with pytest.raises(InputError, match=r"left is 6x3x8x24; the input takes 1x3x8x16"):
        inputs_of(runner, batch=1, data=str(feeds[0]), shapes=[parse_shapes("left=1x3x8x16")])
    with pytest.raises(InputError, match=r"holds left, right, gain; the inputs are x"):
        inputs_of(load_runner(net(conv_net(), "o.onnx"), threads=1), batch=1, data=str(feeds[0]))
    with pytest.raises(InputError, match=r"digits holds images, and net\.onnx takes left .*, right \(uint8\)"):
        inputs_of(runner, batch=2, data="digits", shapes=WIDTHS)


@pytest.mark.parametrize(("operator", "kind"), [("Log", "nan"), ("Reciprocal", "inf")])
def test_outputs_that_are_not_finite_are_never_measured(net, operator, kind):
    """0 and negative numbers give infinities and NaN; an output of integers cannot."""
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node(operator, ["positive"], ["y"]),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40])],
        [
            helper.make_tensor_value_info("best", TensorProto.INT64, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    path = net(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(
        InvalidMeasurement, match=r"net\.onnx makes y with \d+ of 40 values that are not finite"
    ) as caught:
        bench([path], threads=1, options=QUICK)
    assert caught.value.exit_code == 4
