"""Feeds from files: read sample by sample, checked before anything runs, never unpickled."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.data.feeds import is_feeds, open_feeds
from msn_deploy.data.sources import is_as_recorded

IMAGE = TensorSpec("x", "float32", (1, 3, 4, 5))
OPEN = TensorSpec("x", "float32", (None, 3, 4, None))
STATE = TensorSpec("state", "float32", (2, 1, 6))
RATE = TensorSpec("rate", "int64", ())
BYTES = TensorSpec("frame", "uint8", (4, 8, 8, 3))


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 40).astype(dtype)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_samples_of_rows_of_whole_inputs_and_of_numbers(tmp_path: Path, compressed: bool, fortran: bool) -> None:
    x, state, rate = numbers(7, 3, 4, 5), numbers(7, 2, 1, 6), np.arange(7)
    if fortran:
        x, state = np.asfortranarray(x), np.asfortranarray(state)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "f.npz", x=x, state=state, rate=rate)
    source = open_feeds(tmp_path / "f.npz", [IMAGE, STATE, RATE])
    assert (len(source), source.rows) == (7, {"x"})
    samples = list(source)
    assert len(samples) == 7
    for at, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["x"], x[at : at + 1])
        np.testing.assert_array_equal(sample["state"], state[at])
        assert (sample["rate"], sample["rate"].shape) == (at, ())
    assert [each["x"].shape for each in source.runs(most=4)] == [(1, 3, 4, 5)] * 7  # `state` has no batch


def test_runs_are_as_large_as_the_network_and_the_caller_have_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x := numbers(7, 3, 4, 5))
    runs = list(open_feeds(tmp_path / "x.npy", [OPEN]).runs(most=3))
    assert [len(each["x"]) for each in runs] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in runs]), x)
    np.savez(tmp_path / "b.npz", frame=numbers(6, 8, 8, 3, dtype="uint8"))
    runs = list(open_feeds(tmp_path / "b.npz", [BYTES]).runs(most=3))
    assert [each["frame"].shape for each in runs] == [(4, 8, 8, 3)] * 2
    assert (runs[1]["frame"][2:] == runs[1]["frame"][1]).all()  # filled up with the last


def test_a_folder_of_files_of_different_sizes(tmp_path: Path) -> None:
    parts = [numbers(rows, 3, 4, width) for rows, width in ((2, 5), (1, 9), (3, 9))]
    for at, part in enumerate(parts):
        np.savez(tmp_path / f"{at}.npz", x=part)
    source = open_feeds(tmp_path, [OPEN])
    assert [each["x"].shape for each in source.runs(most=8)] == [(2, 3, 4, 5), (4, 3, 4, 9)]
    assert is_feeds(str(tmp_path))
    assert [each["x"].shape[3] for each in source.first(3)] == [5, 9, 9]


def test_a_file_of_exactly_the_fixed_sizes_is_one_sample_in_a_folder(tmp_path: Path) -> None:
    cloud = TensorSpec("points", "float32", (16, 3))
    for at in range(3):
        np.save(tmp_path / f"{at}.npy", numbers(16, 3) + at)
    source = open_feeds(tmp_path, [cloud])
    assert (len(source), source.rows) == (3, frozenset())
    assert [each["points"].shape for each in source.runs(most=8)] == [(16, 3)] * 3
    np.save(tmp_path / "all.npy", numbers(5, 16, 3))
    assert len(open_feeds(tmp_path / "all.npy", [cloud])) == 5


def test_samples_are_drawn_evenly_or_by_a_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10, dtype="float32").reshape(10, 1))
    source = open_feeds(tmp_path / "x.npy", [TensorSpec("x", "float32", (None, 1))])

    def drawn(*args: Any, **options: Any) -> list[float]:
        return [float(each["x"][0, 0]) for each in source.first(*args, **options)]

    assert drawn(4) == [0, 3, 6, 9]
    assert drawn(None) == list(range(10))
    assert drawn(4, seed=3) == drawn(4, seed=3) != drawn(4, seed=4)
    assert [float(each["x"][0, 0]) for each in source.first(4).first(2)] == [0, 9]
    assert source.first(4).as_parent().read == {"first": [4]}


def test_the_data_is_known_again_and_told_from_other_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=numbers(4, 3, 4, 5))
    parent = open_feeds(tmp_path / "f.npz", [IMAGE]).as_parent()
    assert is_as_recorded(parent) is True
    np.savez(tmp_path / "f.npz", x=numbers(4, 3, 4, 5) + 1)
    assert is_as_recorded(parent) is False
    (tmp_path / "f.npz").unlink()
    assert is_as_recorded(parent) is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": numbers(4, 3, 4, 5)}, "holds y; the inputs are x"),
        ({"x": numbers(4, 3, 4, 5), "y": numbers(4)}, "holds x, y; the inputs are x"),
        ({"x": numbers(4, 3, 4, 5, dtype="float64")}, "x is float64; the input takes float32"),
        ({"x": numbers(4, 3, 5, 5)}, "x is 4x3x5x5; the input takes 1x3x4x5"),
        ({"x": numbers(0, 3, 4, 5)}, "holds no sample"),
        ({"x": np.array([None, 1])}, "holds Python objects"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InputError, match=re.escape(said)):
        open_feeds(tmp_path / "f.npz", [IMAGE])


def test_counts_that_differ_a_single_array_for_several_and_values_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=numbers(4, 3, 4, 5), rate=np.arange(3))
    with pytest.raises(InputError, match="different numbers of samples: x 4, rate 3"):
        open_feeds(tmp_path / "f.npz", [IMAGE, RATE])
    np.save(tmp_path / "x.npy", numbers(4, 3, 4, 5))
    with pytest.raises(InputError, match="is one array, and the network has 2 inputs"):
        open_feeds(tmp_path / "x.npy", [IMAGE, RATE])
    x = numbers(4, 3, 4, 5)
    x[2, 0, 1, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"sample 2 \(counted from 0\) of x is not finite"):
        list(open_feeds(tmp_path / "x.npy", [IMAGE]))


def test_what_follows_an_array_is_refused_and_not_hashed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(4, 3, 4, 5))
    os.truncate(tmp_path / "x.npy", 12 << 30)
    with pytest.raises(InputError, match="12 GiB"):
        open_feeds(tmp_path / "x.npy", [IMAGE])


@pytest.mark.parametrize("name", ["f.npz", "f.npy"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match="does not exist"):
        open_feeds(path, [IMAGE])
    path.write_bytes(b"not a file of numpy's" * 9)
    with pytest.raises(InputError, match=re.escape(str(path))):
        open_feeds(path, [IMAGE])
    np.save(tmp_path / "f.npy", numbers(4, 3, 4, 5))
    whole = (tmp_path / "f.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(whole[:-8])
    with pytest.raises(InputError, match="was cut off: of 240 bytes 232 are there"):
        list(open_feeds(tmp_path / "f.npy", [IMAGE]))
