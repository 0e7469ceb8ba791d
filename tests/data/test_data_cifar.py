"""CIFAR-10's binary version, written here byte by byte as its page describes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn_deploy.core.errors import InputError
from msn_deploy.data import load_split

SIZE = {"height_px": 32, "width_px": 32, "channels": 3}
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _record(label: int, seed: int) -> tuple[bytes, np.ndarray]:
    """One label byte, 1024 of red row by row, then green, then blue; and the picture as rows of (r, g, b)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    planes = bytearray([label])
    for channel in range(3):
        for row in range(32):
            planes += bytes(pixels[row, :, channel].tolist())
    return bytes(planes), pixels


def _write(folder: Path, *, per_file: int = 2) -> dict[str, list[tuple[int, np.ndarray]]]:
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[tuple[int, np.ndarray]]] = {"train": [], "test": []}
    for at, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        raw = b""
        for image in range(per_file):
            label = (3 * at + image) % 10
            record, pixels = _record(label, seed=10 * at + image)
            raw += record
            written["test" if name == "test_batch" else "train"].append((label, pixels))
        (folder / f"{name}.bin").write_bytes(raw)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return written


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_all_five_batches_and_the_test(tmp_path: Path, inside: str) -> None:
    written = _write(tmp_path / inside)
    for split in ("train", "test"):
        got = load_split(str(tmp_path), split, **SIZE)
        assert got.labels.tolist() == [label for label, _ in written[split]]
        np.testing.assert_array_equal(got.images, np.stack([pixels for _, pixels in written[split]]))
        assert got.classes == tuple(NAMES)


def test_the_names_are_known_without_their_file_and_grey_is_luminance(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "batches.meta.txt").unlink()
    colour = load_split(str(tmp_path), "test", **SIZE)
    assert colour.classes == tuple(NAMES)
    grey = load_split(str(tmp_path), "test", height_px=32, width_px=32, channels=1)
    luminance = colour.images @ np.array([0.299, 0.587, 0.114])
    assert float(np.abs(grey.images[..., 0] - luminance).max()) < 1.01


def _fails(folder: Path, match: str, split: str = "train") -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_split(str(folder), split, **SIZE)
    assert len(str(caught.value).splitlines()) <= 3


def test_damage_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    third = tmp_path / "data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-1])
    _fails(tmp_path, r"data_batch_3\.bin has 6145 bytes, no multiple of 3073[\s\S]*truncated download")
    third.write_bytes(whole[:3073])
    _fails(tmp_path, r"unlike numbers of images \(data_batch_1\.bin 2, data_batch_2\.bin 2, data_batch_3\.bin 1")
    third.write_bytes(b"")
    _fails(tmp_path, r"data_batch_3\.bin has 0 bytes")
    third.write_bytes(b"\x0a" + whole[1:])
    _fails(tmp_path, r"data_batch_3\.bin has a label 10; CIFAR-10 has 0 to 9")
    third.unlink()
    _fails(tmp_path, r"has no data_batch_3\.bin, which CIFAR-10's train split needs")
    assert len(load_split(str(tmp_path), "test", **SIZE).labels) == 2
    (tmp_path / "test_batch.bin").unlink()
    _fails(tmp_path, r"has no test_batch\.bin", split="test")


def test_cifar_100_under_the_names_of_cifar_10(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3074 * 2))
    _fails(tmp_path, "CIFAR-100, whose records have two labels", split="test")


def test_other_class_names_are_of_another_data_set(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("apple\nbear\n")
    _fails(tmp_path, "does not name the ten classes of CIFAR-10")


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_pickled_version_is_not_opened(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/ran'\ntR.")
    _fails(tmp_path, r"Python version, a pickle; it is not opened\.\nTake the binary version")
    assert not (tmp_path / "ran").exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 6146), at=st.integers(0, 6145), byte=st.integers(0, 255))
def test_any_damage_to_a_file_is_an_input_error_or_a_picture(tmp_path: Path, cut: int, at: int, byte: int) -> None:
    _write(tmp_path)
    raw = bytearray((tmp_path / "test_batch.bin").read_bytes())
    raw[at] = byte
    (tmp_path / "test_batch.bin").write_bytes(raw[:cut])
    try:
        got = load_split(str(tmp_path), "test", **SIZE)
    except InputError:
        return
    assert cut in (3073, 6146)
    assert set(got.labels.tolist()) <= set(range(10))
