from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.engine.trust import trust, trust_built, trust_list, trusted


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_tests_never_write_to_the_real_home(home_of_its_own):
    assert trust_list() == home_of_its_own / "trusted.jsonl"
    assert Path.home() not in trust_list().parents


def test_the_list_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("MSN_DEPLOY_HOME")
    assert trust_list() == tmp_path / "user/.local/share/msn-deploy/trusted.jsonl"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert trust_list() == tmp_path / "data/msn-deploy/trusted.jsonl"
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "own"))
    assert trust_list() == tmp_path / "own/trusted.jsonl"


def test_what_was_added_is_trusted_and_only_the_user_may_read_it(home):
    assert trusted() == frozenset()
    trust("a" * 64, "one.engine")
    trust("b" * 64, "two.engine")
    trust("a" * 64, "again.engine")
    assert trusted() == {"a" * 64, "b" * 64}
    entries = [json.loads(line) for line in trust_list().read_text().splitlines() if line]
    assert [entry["name"] for entry in entries] == ["one.engine", "two.engine"]
    assert stat.S_IMODE(trust_list().stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_writers_at_the_same_moment_lose_nothing(home):
    code = (
        "import sys; from msn_deploy.engine.trust import trust; sys.stdin.readline(); "
        "[trust(f'{sys.argv[1]}{at:063x}', 'x' * 200) for at in range(40)]"
    )
    command = [sys.executable, "-c", code]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE, text=True) for name in "abcd"]
    for writer in writers:  # all are up before the first may start
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate()[0] for writer in writers] == [None] * 4
    assert [writer.returncode for writer in writers] == [0] * 4
    assert trusted() == {f"{name}{at:063x}" for name in "abcd" for at in range(40)}


@pytest.mark.parametrize("junk", [b'{"sha256": "ab', b"\xff\xfe", b"[" * 100_000, b'{"sha256": 5}', b'"text"', b"{}"])
def test_half_a_line_or_junk_costs_no_other_entry(home, junk):
    trust("a" * 64, "one.engine")
    with trust_list().open("ab") as stream:
        stream.write(junk)
    trust("b" * 64, "two.engine")
    assert trusted() == {"a" * 64, "b" * 64}


def link_to_own_list(home):
    (home / "trusted.jsonl").rename(home.parent / "elsewhere.jsonl")
    (home / "trusted.jsonl").symlink_to(home.parent / "elsewhere.jsonl")


def dangling_link(home):
    (home / "trusted.jsonl").unlink()
    (home / "trusted.jsonl").symlink_to("/nonexistent/list")


def pipe(home):
    (home / "trusted.jsonl").unlink()
    os.mkfifo(home / "trusted.jsonl", 0o600)


def folder_in_its_place(home):
    (home / "trusted.jsonl").unlink()
    (home / "trusted.jsonl").mkdir()


def folder_of_all(home):
    home.chmod(0o777)


def folder_of_the_group(home):
    home.chmod(0o775)


def linked_folder_of_all(home):
    home.rename(home.parent / "moved")
    (home.parent / "moved").chmod(0o777)
    home.symlink_to(home.parent / "moved")


def too_long(home):
    with (home / "trusted.jsonl").open("r+b") as stream:
        stream.truncate(1 << 40)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (link_to_own_list, "is a link"),
        (dangling_link, "is a link"),
        (pipe, "not a plain file"),
        (folder_in_its_place, "not a plain file"),
        (folder_of_all, "chmod go-w"),
        (folder_of_the_group, "chmod go-w"),
        (linked_folder_of_all, "chmod go-w"),
        (too_long, "more than 16777216 bytes"),
    ],
)
def test_a_list_that_another_user_may_have_put_there_says_nothing(home, spoil, says):
    trust("a" * 64, "one.engine")
    spoil(home)
    for ask in (trusted, lambda: trust("a" * 64, "one.engine")):
        with pytest.raises(InputError, match=says):
            ask()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("whose", ["trusted.jsonl", "."])
def test_a_list_or_folder_of_another_user_says_nothing(home, whose, mode):
    trust("a" * 64, "one.engine")
    trust_list().chmod(mode)
    os.chown(home / whose, 4321, 4321)
    for ask in (trusted, lambda: trust("a" * 64, "one.engine")):
        with pytest.raises(InputError, match=r"belongs to another user \(4321\)"):
            ask()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_to_the_folder_counts_by_its_owner(home, tmp_path):
    """A user may move the folder to another disk; the link of a stranger can be another one at any time."""
    trust("a" * 64, "one.engine")
    home.rename(tmp_path / "moved")
    home.symlink_to(tmp_path / "moved")
    assert trusted() == {"a" * 64}
    os.chown(home, 4321, 4321, follow_symlinks=False)
    with pytest.raises(InputError, match="belongs to another user"):
        trusted()


def test_a_folder_where_others_can_only_add_will_do(home):
    home.mkdir()
    home.chmod(0o1777)
    trust("a" * 64, "one.engine")
    assert trusted() == {"a" * 64}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_list_that_others_may_write_to_says_nothing(home, mode):
    trust("a" * 64, "one.engine")
    trust_list().chmod(mode)
    for ask in (trusted, lambda: trust("b" * 64, "two.engine")):
        with pytest.raises(InputError, match="may be written to by other users") as caught:
            ask()
        assert f"chmod 600 {trust_list()}" in str(caught.value)


def test_a_list_that_cannot_be_written_is_an_error_with_the_way_out(monkeypatch, below_a_file, caplog):
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(below_a_file))
    with pytest.raises(InputError, match=r"cannot be (read|written).*Not a directory"):
        trust("a" * 64, "one.engine")
    trust_built("a" * 64, "one.engine")
    assert "one.engine was built, but running it will need `--trust`" in caplog.text


def test_a_full_disk_is_an_error(home, monkeypatch):
    monkeypatch.setattr(os, "write", lambda handle, data: len(data) // 2)
    with pytest.raises(InputError, match="the disk is full"):
        trust("a" * 64, "one.engine")
