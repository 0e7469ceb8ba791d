"""Networks whose outputs are fed back: a running sum and a counter, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.engine import OrtRunner
from msn_deploy.engine.runner import Stateful, parse_state
from msn_deploy.model.opened import made_model

pytest.importorskip("onnxruntime", reason="these tests run ONNX files")

# The sum decays, so a state that is lost or fed back twice gives another number; the length is a size of its own.
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3] x, float[N,3] sum, int64[1] count, float[2,W] tape)
=> (float[N,3] total, int64[1] next, float[2,V] longer, float[N,3] y)
<float half = {0.5}, int64[1] one = {1}, float[2,1] mark = {7.0, 8.0}>
{
    old = Mul(sum, half)
    total = Add(old, x)
    next = Add(count, one)
    longer = Concat<axis = 1>(tape, mark)
    y = Neg(total)
}"""
PAIRS = {"total": "sum", "next": "count", "longer": "tape"}


@pytest.fixture
def runner():
    proto = onnx.parser.parse_model(TEXT)
    return OrtRunner(made_model(Path("recurrent.onnx"), proto, proto.SerializeToString()), threads=1)


def test_outputs_come_back_as_inputs_until_it_starts_again(runner):
    recurrent = Stateful(runner, PAIRS, shapes={"tape": (2, 1)})
    assert [spec.name for spec in recurrent.inputs] == ["x"]
    assert [spec.name for spec in recurrent.outputs] == ["total", "next", "longer", "y"]
    xs = np.random.default_rng(0).standard_normal((3, 4, 3)).astype(np.float32)
    wanted = np.zeros((4, 3), np.float32)
    for at, x in enumerate(xs, 1):
        wanted = wanted / 2 + x
        made = recurrent.run({"x": x})
        np.testing.assert_allclose(made["y"], -wanted, atol=1e-6)
        assert made["next"] == at
        assert made["longer"].shape == (2, 1 + at)
    recurrent.reset()
    again = recurrent.run({"x": xs[0][:2]})  # another batch than before
    np.testing.assert_allclose(again["y"], -xs[0][:2])
    assert again["next"] == 1


def test_sizes_that_the_state_leaves_open_are_given(runner):
    open_tape = Stateful(runner, PAIRS)
    with pytest.raises(InputError, match=r"state tape takes 2xany, and starts as 2\.\n.*`--shapes tape=SHAPE`"):
        open_tape.run({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InputError, match="tape takes 2xany, and starts as 3x1"):
        Stateful(runner, PAIRS, shapes={"tape": (3, 1)}).run({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InputError, match=r"takes the inputs x; it is fed x, sum"):
        open_tape.run(dict.fromkeys(("x", "sum"), np.zeros((1, 3), np.float32)))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"totl": "sum"}, "no output totl; did you mean 'total'"),
        ({"total": "summ"}, "no input summ; did you mean 'sum'"),
        ({"total": "x", "y": "x"}, "two outputs of recurrent.onnx would be fed back as one input"),
        ({"next": "sum"}, "makes next as int64 of 1; its input sum takes float32 of anyx3"),
        ({"next": "tape"}, "makes next as int64 of 1; its input tape takes float32 of 2xany"),
    ],
)
def test_what_is_no_state_is_refused(runner, pairs, words):
    with pytest.raises(InputError, match=words):
        Stateful(runner, pairs)


def test_a_pair_is_read_from_the_command_line():
    assert parse_state("hn=h0") == ("hn", "h0")
    for wrong in ("", "hn", "=h0", "hn="):
        with pytest.raises(InputError, match=f"--state {wrong}` is not OUT=IN"):
            parse_state(wrong)
