from __future__ import annotations

import os
from pathlib import Path

from msn_deploy.machine.files import paths, read_number, read_start, read_text


def write(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_is_no_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "zero").symlink_to("/dev/zero")
    write(tmp_path, "huge", b"ab\0\x1b[31mc\n" + bytes(10**6))
    assert [read_text(tmp_path / name) for name in ("pipe", "zero", "gone", ".")] == [None] * 4
    assert read_text(tmp_path / "huge") == "ab[31mc"  # no escape sequence reaches the terminal
    assert len(read_start(tmp_path / "huge", 10**9)) > 10**6


def test_what_is_empty_says_nothing(tmp_path):
    for content in (b"", b" \n", b"\0"):
        assert read_text(write(tmp_path, "file", content)) is None


def test_numbers(tmp_path):
    said = {b"-256000\n": -256000, b" 42\0": 42, b"4 2": None, b"1e3": None, b"9" * 5000: None, "٣".encode(): None}
    for content, number in said.items():
        assert read_number(write(tmp_path, "file", content)) == number


def test_paths_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("cpu10", "cpu9", "cpufreq", "cpu" + "9" * 200):
        (tmp_path / name).mkdir()
    assert [path.name for path in paths(tmp_path, "cpu*")][:3] == ["cpufreq", "cpu9", "cpu10"]
    assert paths(tmp_path / "gone", "*") == []
