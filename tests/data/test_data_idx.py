"""IDX files, written here by struct alone."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.data.idx import read_idx

PIXELS = np.random.default_rng(3).integers(0, 256, (5, 4, 3), dtype=np.uint8)
WHOLE = struct.pack(">HBBIII", 0, 8, 3, 5, 4, 3) + PIXELS.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_every_byte_comes_back_in_its_place(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(WHOLE) if packed else WHOLE)
    np.testing.assert_array_equal(read_idx(path, rank=3), PIXELS)


def test_labels_have_one_dimension(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes([7, 0, 9]))
    assert read_idx(tmp_path / "labels", rank=1).tolist() == [7, 0, 9]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for kept in range(len(WHOLE)):
        (tmp_path / "images").write_bytes(WHOLE[:kept])
        with pytest.raises(InputError, match="images"):
            read_idx(tmp_path / "images", rank=3)


def test_truncated_data_says_so_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(WHOLE[:-1])
    with pytest.raises(InputError, match=r"59 bytes of data, its header promises 5x4x3[\s\S]*truncated"):
        read_idx(tmp_path / "images", rank=3)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x01" + WHOLE[1:], "not an IDX file"),
        (WHOLE[:2] + b"\x0d" + WHOLE[3:], "not an IDX file of bytes"),  # floats
        (WHOLE[:3] + b"\x01" + WHOLE[4:], "3 dimensions"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "starts with 89 50 4e 47"),
        (WHOLE + b"\0", "61 bytes of data"),
    ],
    ids=["magic", "type", "rank", "png", "surplus"],
)
def test_other_content_is_refused(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / "images").write_bytes(raw)
    with pytest.raises(InputError, match=why):
        read_idx(tmp_path / "images", rank=3)


@pytest.mark.parametrize("kept", [0, 1, 5, 10, 20, -9, -4, -1])
def test_every_damaged_gzip_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(WHOLE)[:kept])
    with pytest.raises(InputError, match=r"images\.gz"):
        read_idx(tmp_path / "images.gz", rank=3)


def test_a_flipped_byte_in_the_middle_of_a_gzip_is_refused(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(WHOLE))
    raw[len(raw) // 2] ^= 0x40
    (tmp_path / "images.gz").write_bytes(bytes(raw))
    with pytest.raises(InputError, match=r"images\.gz is a damaged gzip file"):
        read_idx(tmp_path / "images.gz", rank=3)
