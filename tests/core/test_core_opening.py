"""Files that nobody should open, files that are too large, and what is packed."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import MOST_BYTES, inflated, is_same, open_input, open_zip, read_input, require_size, taken


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # of at most 108 letters


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (_socket, "a socket"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("gone"), "does not exist"),
        (lambda path: path.symlink_to(path), os.strerror(errno.ELOOP)),
    ],
)
def test_only_plain_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "odd")
    before = len(os.listdir("/proc/self/fd"))
    for read in (lambda: read_input(tmp_path / "odd", "any"), lambda: open_input(tmp_path / "odd", "any").__enter__()):
        with pytest.raises(InputError, match=f"odd .*{what}"):
            read()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a" * 300, "a/" * 3000])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(InputError, match="a"):
        read_input(Path(name), "any")


def test_what_a_kernel_shows_is_empty() -> None:
    """Such a file says that it has no bytes; some, such as /proc/kmsg, have no end."""
    for name in ("/proc/self/mem", "/proc/self/maps", "/proc/kmsg"):
        if os.access(name, os.R_OK):
            assert read_input(Path(name), "any") == b""
            with open_input(Path(name), "any") as stream:
                assert stream.read() == b""


def test_a_size_is_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    for kind, most in MOST_BYTES.items():
        if kind == "any":
            continue
        with (tmp_path / "x").open("wb") as stream:
            stream.truncate(most + 1)  # without a block on the disk
        for read in (read_input, lambda path, kind: open_input(path, kind).__enter__()):
            with pytest.raises(InputError, match=r"x has .* of up to .* are read"):
                read(tmp_path / "x", kind)
    os.truncate(tmp_path / "x", MOST_BYTES["settings"])
    assert len(read_input(tmp_path / "x", "settings")) == MOST_BYTES["settings"]
    with pytest.raises(InputError, match=r"x has 8589934592 GiB"):  # any number can stand in a header
        require_size(10**400, source="x", kind="data")


def test_of_a_stream_comes_as_much_as_was_announced() -> None:
    packed = gzip.compress(bytes(range(200)))
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        assert taken(stream, 3, source="x", kind="data") == b"\0\1\2"
        with pytest.raises(InputError, match="x was cut off: of 1000 bytes 197 are there"):
            taken(stream, 1000, source="x", kind="data")
    with pytest.raises(InputError, match=r"x has .* of up to 1\.25 GiB are read"):
        taken(io.BytesIO(), 1 << 40, source="x", kind="data")
    for damage in (packed[:30], packed[:-9] + bytes(9), b"no gzip"):
        with gzip.GzipFile(fileobj=io.BytesIO(damage)) as stream, pytest.raises(InputError, match=r"x is damaged \("):
            taken(stream, 1000, source="x", kind="data")


def test_zlib_gives_no_more_than_is_asked_for() -> None:
    packed = zlib.compress(bytes(1 << 20))
    assert [len(inflated(packed, count)) for count in (0, 8, 1 << 19, 1 << 21)] == [0, 8, 1 << 19, 1 << 20]


def test_zip_archives_by_what_their_directory_announces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**options: Any) -> io.BytesIO:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", **options) as archive:
            for name in "ab":
                archive.writestr(name, bytes(700_000))
        return stream

    assert open_zip(made(), source="x", kind="data").namelist() == ["a", "b"]
    with pytest.raises(InputError, match=r"x, unpacked, has 1\.34 MiB"):  # each alone is small enough
        open_zip(made(compression=zipfile.ZIP_DEFLATED), source="x", kind="settings")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(InputError, match="otherwise than by deflate"):
            open_zip(made(compression=method), source="x", kind="data")
    with pytest.raises(InputError, match=r"x is not a whole zip archive \(BadZipFile\)"):
        open_zip(io.BytesIO(made().getvalue()[:-30]), source="x", kind="data")
    monkeypatch.setattr("msn_deploy.core.opening._ENTRIES", 1)
    with pytest.raises(InputError, match="x has 2 entries"):
        open_zip(made(), source="x", kind="data")


def test_a_circle_of_links_is_another_place_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").touch()
    assert not is_same(tmp_path / "circle", tmp_path / "file")
    assert is_same(tmp_path / "link", tmp_path / "file")
