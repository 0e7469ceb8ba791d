"""IDX files, written here by struct alone."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import MOST_BYTES
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
    with pytest.raises(InputError, match=r"59 bytes of data, its header promises 5x4x3"):
        read_idx(tmp_path / "images", rank=3)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x01" + WHOLE[1:], "not an IDX file"),
        (WHOLE[:2] + b"\x0d" + WHOLE[3:], "not an IDX file of bytes"),  # floats
        (WHOLE[:3] + b"\x01" + WHOLE[4:], "3 dimensions"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "starts with 89 50 4e 47"),
        (WHOLE + b"\0", "more than 60 bytes of data"),
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
    with pytest.raises(InputError, match=r"images\.gz is damaged"):
        read_idx(tmp_path / "images.gz", rank=3)


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_is_unpacked_than_the_header_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """12 MB of gzip unpacked to 12 GB before the header was looked at."""
    raw = WHOLE + bytes(20_000_000)
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 60 bytes of data"):
        read_idx(path, rank=3)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    monkeypatch.setitem(MOST_BYTES, "data", 59)
    path.write_bytes(gzip.compress(WHOLE) if packed else WHOLE)
    with pytest.raises(InputError, match="of up to 59 bytes are read"):
        read_idx(path, rank=3)


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**31, 2**31, 1), (60_000, 40_000, 40_000)])
def test_huge_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    (tmp_path / "images").write_bytes(struct.pack(">HBBIII", 0, 8, 3, *shape) + PIXELS.tobytes())
    with pytest.raises(InputError, match=r"images has .* of up to 1.25 GiB are read"):
        read_idx(tmp_path / "images", rank=3)
