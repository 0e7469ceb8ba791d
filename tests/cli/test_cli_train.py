"""`train`: a run that is there is not replaced by accident, and each epoch is told as it ends."""

import re

import pytest

pytestmark = pytest.mark.slow

SMALL = ("train", "cnn3_none", "--samples", 64, "--set", "width=2")


@pytest.fixture(scope="module")
def trained(ok, tmp_path_factory):
    """The folder of a finished run, and what the command said on stderr."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, ok(*SMALL, "--epochs", 2, "--out", folder).err


def test_each_epoch_is_told_without_a_terminal(trained):
    lines = [line for line in trained[1].splitlines() if " epoch " in line]
    assert len(lines) == 2
    for at, line in enumerate(lines, start=1):
        wanted = rf"cnn3_none epoch {at}/2: loss [\d.]+, test [\d.]+%, lr [\d.e-]+, [\d,]+ images/s, [\d.]+ s"
        assert re.fullmatch(wanted, line), line


def test_a_finished_run_is_not_replaced_unless_asked(cli, ok, trained, snapshot):
    folder = trained[0]
    before = snapshot(folder)
    outcome = cli(*SMALL, "--epochs", 1, "--out", folder)
    assert (outcome.code, "--overwrite" in outcome.err, "--name" in outcome.err) == (2, True, True)
    assert snapshot(folder) == before
    ok(*SMALL, "--epochs", 1, "--out", folder, "--name", "other")
    kept = {name: digest for name, digest in snapshot(folder).items() if "other." not in name}
    assert kept == before
    ok(*SMALL, "--epochs", 1, "--seed", 4, "--out", folder, "--name", "other", "--overwrite")
    assert snapshot(folder) != before


def test_an_unfinished_run_is_neither(cli, tmp_path):
    (tmp_path / "cnn3_none.state.safetensors").write_bytes(b"a state")
    outcome = cli(*SMALL, "--out", tmp_path)
    assert (outcome.code, "--resume" in outcome.err, "--overwrite" in outcome.err) == (2, True, True)
    assert [path.name for path in tmp_path.iterdir()] == ["cnn3_none.state.safetensors"]


@pytest.mark.parametrize("words", [("--resume", "--overwrite"), ("--name", "../x"), ("--name", "")])
def test_what_contradicts_itself_is_refused(cli, tmp_path, words):
    outcome = cli(*SMALL, "--out", tmp_path, *words)
    assert (outcome.code, words[0] in outcome.err) == (2, True)
    assert not list(tmp_path.iterdir())
