"""The process of onnxsim: what it imports, and that nothing of it outlives whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from graph_fixtures import COLD_SIMPLIFIER
from onnx import ModelProto

from msn_deploy.core.errors import MissingDependency
from msn_deploy.core.partials import partial_folder
from msn_deploy.graph.simplify import simplify

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process as users start it."""
    monkeypatch.setattr("msn_deploy.graph.simplify._worker", COLD_SIMPLIFIER)


def test_a_simplifier_that_hangs_is_ended_with_all_that_it_started(
    tiny: Callable[..., ModelProto], fake: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "child"
    fake(
        "import subprocess, time\n"
        "def simplify(model, **options):\n"
        f"    child = subprocess.Popen(['sleep', '60'])\n    open({str(note)!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(60)\n"
    )

    class Patient(subprocess.Popen[bytes]):
        """Waits for the child first, however busy the machine is, and then hardly."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                _until(lambda: note.is_file() and note.read_text() != "")
            return super().wait(None if timeout is None else 0.01)

    monkeypatch.setattr(subprocess, "Popen", Patient)
    assert simplify(tiny("Relu"), timeout_s=90).kept_because == "onnxsim took more than 90 s"
    assert _is_gone(int(note.read_text()))


def test_a_simplifier_is_missing_with_the_way_to_get_it(
    tiny: Callable[..., ModelProto], fake: Callable[[str], Path]
) -> None:
    fake("raise ImportError('libonnx.so is not there')")
    with pytest.raises(MissingDependency, match=r"needs onnxsim, .*libonnx\.so is not there.*\n.*\[export\]"):
        simplify(tiny("Relu"))


def test_modules_of_the_working_directory_are_not_imported_and_nothing_is_said(
    tiny: Callable[..., ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onnxsim.py").write_text("raise SystemExit('taken')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert simplify(tiny("Relu")).kept_because is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_a_kill_ends_the_simplifier_too(
    tiny: Callable[..., ModelProto],
    saved: Callable[..., Path],
    fake: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: signal.Signals,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    note = tmp_path / "worker"
    folder = fake(
        "import os, signal, time\n"
        "def simplify(model, **options):\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"    open({str(note)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    code = (
        # Where the tests run in the background of a shell, a child starts with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "import onnx\nfrom msn_deploy.graph.simplify import simplify\n"
        f"simplify(onnx.load({str(saved(tiny('Relu')))!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as parent:
        _until(lambda: note.is_file() and note.read_text() != "")
        parent.send_signal(end)
        _, err = parent.communicate(timeout=30)
    assert ("KeyboardInterrupt" in err) == (end == signal.SIGINT)
    assert _is_gone(int(note.read_text()))
    assert len(list((tmp_path / "tmp").iterdir())) == (end == signal.SIGKILL)
    with partial_folder(tmp_path / "tmp") as folder:  # the next run takes what is left along
        assert list((tmp_path / "tmp").iterdir()) == [folder]


def test_a_simplifier_that_hangs_does_not_outlive_who_started_it(
    tiny: Callable[..., ModelProto], saved: Callable[..., Path], fake: Callable[[str], Path]
) -> None:
    folder = fake("import time\ndef simplify(model, **options):\n    time.sleep(60)\n")
    saved(tiny("Relu")).rename(folder / "before.onnx")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from msn_deploy.graph.simplify import work; work(0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, input=b"\n").returncode == -signal.SIGALRM


def test_a_simplifier_without_a_graph_ends_with_who_started_it(fake: Callable[[str], Path]) -> None:
    folder = fake("")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from msn_deploy.graph.simplify import work; work(60)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0
    assert not (folder / "reason").exists()


def _is_gone(pid: int) -> bool:
    """A killed process whose parent is dead may wait for init to take note; it runs no more."""

    def over() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):  # gone before, or while it was read
            return True

    _until(over)
    return True


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
