"""Ctrl-C in a training: what is kept, and does `--resume` end where an uninterrupted run ends?"""

import signal
import time

import pytest

pytestmark = pytest.mark.slow

OPTIONS = ("train", "cnn3_msn", "--epochs", 8, "--limit-train", 256)
DEADLINE_S = 120


def _ctrl_c_works():
    """A shell that starts tests in the background leaves SIGINT ignored, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ok):
    """The checkpoint of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("undisturbed")
    ok(*OPTIONS, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        ".msn-deploy",
        "cnn3_msn.curves.png",
        "cnn3_msn.history.jsonl",
        "cnn3_msn.safetensors",
        "cnn3_msn.safetensors.json",
    ]
    return out / "cnn3_msn.safetensors"


def _wait_for(path, process):
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_interrupted_training_resumes_to_the_same_weights(cli, start, ok, undisturbed, tmp_path):
    from msn_deploy.training import load_checkpoint

    out = tmp_path / "runs"
    checkpoint = out / "cnn3_msn.safetensors"
    process = start("-m", "msn_deploy", *OPTIONS, "--out", out, preexec_fn=_ctrl_c_works)
    _wait_for(checkpoint, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, stderr
    assert stdout == ""
    told = stderr[stderr.index("msn-deploy: ") :]  # after what the images are like
    assert told.startswith("msn-deploy: interrupted")
    assert str(checkpoint) in stderr
    assert "--resume" in stderr
    assert len(told.splitlines()) <= 3

    _, info = load_checkpoint(checkpoint)
    stopped_after = info.metrics["epoch"]
    assert 1 <= stopped_after < 8
    assert ok("eval", checkpoint, "--samples", 20).out
    assert ok("verify", out).err == ""
    assert not list(out.glob(".*.partial"))
    wrong = cli(*OPTIONS[:2], "--epochs", 9, "--limit-train", 256, "--out", out, "--resume")
    assert (wrong.code, "other options" in wrong.err) == (2, True)

    assert "8 epochs" in ok(*OPTIONS, "--out", out, "--resume").out
    assert checkpoint.read_bytes() == undisturbed.read_bytes()
    history = (out / "cnn3_msn.history.jsonl").read_text().splitlines()
    assert len(history) == 8
    assert not list(out.glob("*.state.*"))


@pytest.mark.parametrize("old", [False, True], ids=["no checkpoint", "a checkpoint of an earlier run"])
def test_ctrl_c_before_the_first_epoch_promises_nothing(cli, ok, tmp_path, monkeypatch, old):
    """An older checkpoint is not this run's, and there is no state to resume from."""
    import msn_deploy.training

    if old:
        ok("train", "cnn3_msn", "--epochs", 1, "--limit-train", 32, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(msn_deploy.training, "train", interrupted)
    outcome = cli("train", "cnn3_msn", "--overwrite", "--out", tmp_path)
    assert outcome.code == 130
    assert outcome.err == "msn-deploy: interrupted before the end of the first epoch; nothing was written.\n"
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_ctrl_c_elsewhere_exits_130_in_one_line(cli, run_folder, monkeypatch):
    import msn_deploy.pipeline.evaluate

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(msn_deploy.pipeline.evaluate, "evaluate", interrupted)
    outcome = cli("eval", run_folder / "cnn3_msn.onnx")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (130, "", 1)
    assert outcome.err.startswith("msn-deploy: interrupted")
