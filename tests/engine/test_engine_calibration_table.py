"""The calibration table: the text that TensorRT 8 to 10 writes and reads, there and back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msn_deploy.core.errors import InputError
from msn_deploy.engine.calibration_table import format_table, parse_release, parse_table

WRITTEN = "TRT-8600-EntropyCalibration2\ninput: 3f800000\nrelu/a: 3c010204\n"


def test_the_text_is_that_of_tensorrt() -> None:
    assert format_table({"input": 127.0, "relu/a": 1.0}, 8600) == WRITTEN
    assert parse_table(WRITTEN) == {"input": 1.0, "relu/a": float(np.float32(1 / 127))}
    # What tables written by TensorRT itself hold for images of 0 to 1 (half a bin of 2048 above 1).
    assert parse_table("TRT-8600-EntropyCalibration2\ndata: 3c010a14")["data"] == pytest.approx(1 / 127, rel=3e-4)


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


@given(ranges=st.dictionaries(names, st.floats(1e-30, 1e30), max_size=9), release=st.integers(8000, 109999))
def test_there_and_back(ranges: dict[str, float], release: int) -> None:
    text = format_table(ranges, release)
    assert text.startswith(f"TRT-{release}-EntropyCalibration2\n")
    assert parse_table(text) == {name: float(np.float32(largest / 127)) for name, largest in ranges.items()}
    assert all(re.fullmatch(r".+: [0-9a-f]{8}", line) for line in text.splitlines()[1:])


def test_names_with_colons_and_spaces_inside() -> None:
    ranges = {"a: b": 1.0, "a: b: 3f800000": 2.0, "module 1/conv:0": 3.0}
    assert parse_table(format_table(ranges, 8600)) == {k: float(np.float32(v / 127)) for k, v in ranges.items()}


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", " a", "a\t", "a\u2028b"])
def test_names_that_a_line_cannot_hold(name: str) -> None:
    with pytest.raises(InputError, match="has a name that a calibration table can't hold"):
        format_table({name: 1.0}, 8600)


@pytest.mark.parametrize("largest", [0.0, -1.0, float("inf"), float("nan"), 1e60, 1e-60])
def test_ranges_without_a_scale(largest: float) -> None:
    with pytest.raises(InputError, match="which gives no scale"):
        format_table({"a": largest}, 8600)


@pytest.mark.parametrize(
    ("text", "number"),
    [("trt-8.5", 8500), ("trt-8.6", 8600), ("trt-8.6.2", 8602), ("trt-10.3", 100300), ("trt-10.13.3", 101303)],
)
def test_releases(text: str, number: int) -> None:
    assert parse_release(text) == number


@pytest.mark.parametrize("text", ["8.6", "trt-8", "trt-x.y", "trt-8.6.1.2", "", "trt-8.6 ", "trt-100.3"])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a TensorRT release.\nGive trt-8.6"):
        parse_release(text)


@pytest.mark.parametrize("text", ["trt-11.0", "trt-7.1"])
def test_releases_without_a_table(text: str) -> None:
    with pytest.raises(InputError, match="reads no calibration table; 8 to 10 do"):
        parse_release(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a calibration table"),
        ("TRT-8600-MinMaxCalibration\na: 3f800000\n", "not a calibration table"),
        ("TRT-8600-EntropyCalibration2\na 3f800000\n", "line 2 .* is not `tensor: hex`"),
        ("TRT-8600-EntropyCalibration2\na: 3f800000\nb: 3f80\n", "line 3"),
        ("TRT-8600-EntropyCalibration2\na: 3F8000ZZ\n", "line 2"),
    ],
)
def test_what_is_no_table(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_table(text)
