"""One flipped byte anywhere in a run: `verify` exits 1 and names the file."""

import random
import shutil

import pytest

from msn_deploy.core.artifacts import sidecar_path

# one artifact of each kind
KINDS = [
    "cnn3_msn.safetensors",
    "cnn3_msn.history.jsonl",
    "cnn3_msn.onnx",
    "cnn3_msn.int8.onnx",
    "cnn3_msn.int8.engine",
    "bench.json",
    "report.html",
]


@pytest.fixture(scope="module")
def kept(run_folder, tmp_path_factory):
    """A copy of the run, with a result and a report beside it."""
    from msn_deploy.core.artifacts import publish

    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("kept") / "run")
    for name, kind in (("bench.json", "bench"), ("report.html", "report")):
        publish(folder / name, lambda path: path.write_text("0" * 1000), kind=kind)
    return folder


def _flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << random.Random(at).randrange(8)
    path.write_bytes(raw)


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_byte_in_an_artifact_is_found(cli, kept, name):
    path = kept / name
    whole = path.read_bytes()
    gen = random.Random(name)
    try:
        for at in (0, len(whole) - 1, gen.randrange(len(whole)), gen.randrange(len(whole))):
            _flip(path, at)
            outcome = cli("verify", kept, "--no-data")
            assert outcome.code == 1, f"byte {at} of {name}"
            assert f"files are broken, the first: {name} (its bytes" in outcome.err  # not a file made from it
            assert len(outcome.err.splitlines()) <= 3
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_byte_in_a_sidecar_is_found(cli, kept, name):
    side = sidecar_path(kept / name)
    whole = side.read_bytes()
    gen = random.Random(name)
    try:
        for at in (0, len(whole) - 1, *(gen.randrange(len(whole)) for _ in range(10))):
            _flip(side, at)
            outcome = cli("verify", kept, "--no-data")
            assert outcome.code == 1, f"byte {at} of {side.name}"
            assert side.name in outcome.err or name in outcome.err
            side.write_bytes(whole)
    finally:
        side.write_bytes(whole)


def test_a_shortened_a_missing_and_an_exchanged_file_are_found(cli, kept, tmp_path):
    for change, word in (
        (lambda folder: (folder / "cnn3_msn.onnx").write_bytes(b""), "cnn3_msn.onnx"),
        (lambda folder: (folder / "cnn3_msn.int8.engine").unlink(), "cnn3_msn.int8.engine"),
        (_exchange, "another cnn3_bn.safetensors"),
    ):
        folder = shutil.copytree(kept, tmp_path / word)
        change(folder)
        outcome = cli("verify", folder)
        assert outcome.code == 1
        assert word in outcome.out + outcome.err


def _exchange(folder):
    """Replace a checkpoint, with its own sidecar: each file is whole, but the ONNX files came from another."""
    for suffix in ("", ".json"):
        (folder / f"cnn3_bn.safetensors{suffix}").unlink()
    from msn_deploy.core.artifacts import publish

    publish(folder / "cnn3_bn.safetensors", lambda path: path.write_bytes(b"other"), kind="checkpoint")


def test_a_file_without_a_sidecar_is_reported_and_no_error(ok, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    (folder / ".cnn3_msn.onnx.1a2b.partial").write_text("left by a killed run")
    outcome = ok("verify", folder)
    assert "notes.txt" in outcome.out
    assert "unknown" in outcome.out
    assert "partial" not in outcome.out


def test_eval_does_not_run_a_damaged_checkpoint_silently(cli, kept, tmp_path):
    """The header of a checkpoint is not covered by a checksum of its own; whatever a flip does, no traceback."""
    whole = (kept / "cnn3_msn.safetensors").read_bytes()
    for at in random.Random(5).sample(range(2500), 12):
        copy = tmp_path / "flipped.safetensors"
        copy.write_bytes(whole)
        _flip(copy, at)
        outcome = cli("eval", copy, "--samples", 20)
        assert outcome.code in (0, 2), f"byte {at}"
        assert len(outcome.err.splitlines()) <= 3
