"""Which types an engine takes, and which range every open size gets."""

from __future__ import annotations

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine.tensors import (
    InputShapes,
    check_types,
    parse_shapes,
    shape_ranges,
    sized_inputs,
    trtexec_shapes,
    types_in,
)

IMAGE = TensorSpec("image", "uint8", (None, 3, None, None))
STATE = TensorSpec("state", "float32", (None, 64))
GAIN = TensorSpec("gain", "float32", ())
MASK = TensorSpec("mask", "bool", (2, 64))
BATCHES = (1, 4, 8)


def ranges(inputs, *shapes, batches=BATCHES, **more):
    return shape_ranges(inputs, [parse_shapes(each) for each in shapes], batches, source="m.onnx", **more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=1x3x32x64:2x3x32x320:4x3x32x1280", ("x", (1, 3, 32, 64), (2, 3, 32, 320), (4, 3, 32, 1280))),
        ("x=1x3", ("x", (1, 3), (1, 3), (1, 3))),
        ("input:0=7:8:9", ("input:0", (7,), (8,), (9,))),
        ("a=b=5", ("a=b", (5,), (5,), (5,))),
        ("past=1x0x8:1x4x8:1x9x8", ("past", (1, 0, 8), (1, 4, 8), (1, 9, 8))),
    ],
)
def test_shapes_are_read_and_written_as_they_are_typed(text, expected):
    shapes = parse_shapes(text)
    assert shapes == InputShapes(*expected)
    assert str(shapes) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "x=", "=1x3", "1x3", "x=1x3:2x3", "x=1,3", "x=1x-3", "x=axb", "x=1x3:1x4:1x5:1x6", "x=1x", "x=1 x3"),
        *("x=1x3:1x3x1:1x5", "x=1x4:1x3:1x5", "x=1x3:1x5:1x4", "x=1x0"),
    ],
)
def test_what_is_no_shape_or_out_of_order_is_refused(text):
    with pytest.raises(InputError, match=r"--shapes") as caught:
        parse_shapes(text)
    assert text in str(caught.value)


def test_first_axes_are_the_batch_and_other_sizes_are_given():
    found = ranges([IMAGE, STATE, GAIN, MASK], "image=1x3x32x32:2x3x64x96:3x3x128x128")
    assert found == {
        "image": ((1, 3, 32, 32), (2, 3, 64, 96), (3, 3, 128, 128)),
        "state": ((1, 64), (4, 64), (8, 64)),
    }
    assert ranges([GAIN, MASK]) == {}
    assert ranges([TensorSpec("x", "float32", None)], "x=1x3") == {"x": ((1, 3),) * 3}


@pytest.mark.parametrize(
    ("inputs", "shapes", "words"),
    [
        ([IMAGE], [], r"input image is anyx3xanyxany\.\n.*--shapes image=1x3x32x32:1x3x64x64:4x3x128x128"),
        ([IMAGE], ["imag=1x3x8x8"], "no input imag; did you mean 'image'"),
        ([STATE], ["state=1x63"], "does not fit: the input state is anyx64"),
        ([STATE], ["state=1x1x64"], "does not fit"),
        ([STATE], ["state=1x64", "state=2x64"], "given twice for the input state"),
        ([MASK], ["mask=2x64"], "mask of m.onnx has the fixed shape 2x64"),
        ([TensorSpec("x", "float32", None)], [], "does not say the rank of its input x"),
    ],
)
def test_what_is_open_and_not_given_or_given_and_not_open_is_refused(inputs, shapes, words):
    with pytest.raises(InputError, match=words):
        ranges(inputs, *shapes)


@pytest.mark.parametrize(
    ("inputs", "shapes", "batches", "words"),
    [
        ([MASK], [], (1, 4, 8), "fixed batch of 2; 8 was asked for"),
        ([MASK], [], (1, 2, 2), "fixed batch of 2"),
        ([STATE], ["state=1x64"], (4, 4, 4), "its batch given by `--shapes`; 4 was asked"),
        ([GAIN], [], (4, 4, 4), "4 was asked for"),
    ],
)
def test_a_batch_that_nothing_takes_is_refused_and_not_ignored(inputs, shapes, batches, words):
    with pytest.raises(InputError, match=words):
        ranges(inputs, *shapes, batches=batches, batch_asked=True)
    assert ranges([MASK], batches=(2, 2, 2), batch_asked=True) == {}  # the one that it has
    assert ranges([STATE, MASK], batch_asked=True)["state"][2] == (8, 64)


def test_on_dla_a_range_is_refused():
    with pytest.raises(InputError, match=r"on DLA every size is fixed\.\nGive one shape: `--shapes state=2x64`"):
        ranges([STATE], "state=1x64:1x64:2x64", one_size=True)
    assert ranges([STATE], "state=2x64", one_size=True) == {"state": ((2, 64),) * 3}


def test_a_query_has_one_shape_for_every_input():
    given = [parse_shapes(each) for each in ("image=2x3x32x48", "of_another_network=1x1")]
    sized = sized_inputs([IMAGE, STATE, GAIN, MASK], given, batch=5, source="m.onnx")
    assert [spec.shape for spec in sized] == [(2, 3, 32, 48), (5, 64), (), (2, 64)]
    assert [spec.dtype for spec in sized] == ["uint8", "float32", "float32", "bool"]
    with pytest.raises(InputError, match=r"input image is anyx3xanyxany\.\n.*`--shapes image=5x3x64x64`"):
        sized_inputs([STATE, IMAGE], [], batch=5, source="m.onnx")
    with pytest.raises(InputError, match=r"image=1x3x8x8:2x3x8x8:3x3x8x8` is a range"):
        sized_inputs([IMAGE], [parse_shapes("image=1x3x8x8:2x3x8x8:3x3x8x8")], batch=5, source="m.onnx")


def test_trtexec_is_told_all_inputs_at_once_with_odd_names_in_its_quotes():
    assert trtexec_shapes({}) == []
    assert trtexec_shapes({"a": ((1, 2), (3, 4), (5, 6)), "in:0": ((7,), (8,), (9,))}) == [
        "--minShapes=a:1x2,'in:0':7",
        "--optShapes=a:3x4,'in:0':8",
        "--maxShapes=a:5x6,'in:0':9",
    ]


@pytest.mark.parametrize(
    ("version", "lacks"), [("8.2.1", {"uint8", "bfloat16"}), ("8.5.2", {"bfloat16"}), ("10.3.0", set())]
)
def test_types_are_those_of_the_release_and_int64_is_read_as_int32_where_there_is_none(version, lacks):
    known = types_in(version)
    for dtype in ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"):
        specs = [TensorSpec("x", dtype, (1,))]
        if dtype not in lacks:
            check_types(specs, known, source="m.onnx", title="TensorRT")
            continue
        with pytest.raises(InputError, match=f"TensorRT has no inputs and outputs of {dtype}, the type of x in m.onnx"):
            check_types(specs, known, source="m.onnx", title="TensorRT")


@pytest.mark.parametrize("dtype", ["float64", "uint16", "uint32", "uint64", "int16", "complex64", "object"])
def test_types_that_no_tensorrt_has_are_refused_even_where_its_parser_would_make_floats_of_them(dtype):
    with pytest.raises(InputError, match=rf"of {dtype}.*\n.*float32, float16, .*bool"):
        check_types([TensorSpec("x", dtype, (1,))], types_in("11.4.0"), source="m.onnx", title="TensorRT")
