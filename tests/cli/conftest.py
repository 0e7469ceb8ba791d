"""A small finished run that the command-line tests share, and how they call the command line."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, call, one_thread
from PIL import Image

import msn_deploy
from msn_deploy.data import load_split

REPO = Path(msn_deploy.__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a finished run is slow: making one takes longer than all that it is needed for."""
    for item in items:
        if {"run_folder", "whole_run"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def _succeed(*args: object) -> Outcome:
    outcome = call(*args)
    assert outcome.code == 0, f"{' '.join(map(str, args))}: {outcome}"
    return outcome


@pytest.fixture(autouse=True)
def plain_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever debugs the tests with MSN_DEPLOY_DEBUG=1 in the shell still tests what users see."""
    monkeypatch.delenv("MSN_DEPLOY_DEBUG", raising=False)


@pytest.fixture(autouse=True)
def no_real_time(steady_clock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """What `bench` measures here hangs neither on the machine nor on what else it does."""
    with steady_clock():
        yield


@pytest.fixture
def cli() -> Callable[..., Outcome]:
    """Run a command line in this process: `cli("eval", path)`."""
    return call


@pytest.fixture(scope="session")
def ok() -> Callable[..., Outcome]:
    """Run a command line in this process that has to exit 0."""
    return _succeed


@pytest.fixture(scope="session")
def process_env(home_of_its_own: Path) -> dict[str, str]:
    """The environment of commands that run in a process of their own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MSN_DEPLOY", "PYTHON", "COLUMNS"))}
    return {**kept, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "MSN_DEPLOY_HOME": str(home_of_its_own)}


@pytest.fixture
def start(process_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process (`start("-m", "msn_deploy", ...)`); what still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def _start(*args: object, **options: object) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": process_env, "cwd": tmp_path}
        process = subprocess.Popen([sys.executable, *map(str, args)], text=True, **{**pipes, **options})
        started.append(process)
        return process

    yield _start
    for process in started:
        with process:
            process.kill()


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Return every file below a folder with its SHA-256, and every folder, as one comparable dict."""

    def _snapshot(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): "folder"
            if not path.is_file()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
        }

    return _snapshot


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: two checkpoints, ONNX files in every precision, two engines. Read it, never write to it."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("run")
    for name in ("cnn3_msn", "cnn3_bn"):
        _succeed("train", name, "--epochs", 2, "--out", folder)
        _succeed("export", folder / f"{name}.safetensors", "--out", folder / f"{name}.onnx")
    _succeed("export", folder / "cnn3_bn.safetensors", "--no-fold", "--out", folder / "cnn3_bn.unfolded.onnx")
    _succeed("calibrate", folder / "cnn3_msn.onnx", "--samples", 100)
    for precision in ("fp16", "int8"):
        _succeed("build-engine", folder / "cnn3_msn.onnx", "--precision", precision, "--samples", 100)
    return folder


@pytest.fixture(scope="session")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, steady_clock: Callable[[], AbstractContextManager[None]]
) -> Path:
    """What every command of the pipeline leaves, made in seconds: one epoch on few images. Never write to it."""
    from msn_deploy.bench import MeasureOptions
    from msn_deploy.pipeline.bench import bench, write_html, write_json

    folder = tmp_path_factory.mktemp("whole")
    onnx, int8 = folder / "cnn3_msn.onnx", folder / "cnn3_msn.int8.onnx"
    train = ("--epochs", 1, "--limit-train", 320, "--set", "width=4")
    _succeed("train", "cnn3_msn", *train, "--out", folder, "--json", folder / "train.json")
    _succeed("export", folder / "cnn3_msn.safetensors", "--out", onnx)
    _succeed("calibrate", onnx, "--samples", 32, "--method", "minmax")
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        _succeed("build-engine", int8, "--precision", "int8")
    _succeed("eval", int8, "--threads", 1, "--json", folder / "accuracy.json")
    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    with one_thread(), steady_clock():
        result = bench([onnx, int8], threads=1, options=quick)
    write_json(result, folder / "bench.json", [onnx, int8])
    write_html(result, folder / "report.html", [onnx, int8], title="a run")
    return folder


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty digits of the test split as PNG files named after their class."""
    folder = tmp_path_factory.mktemp("images")
    split = load_split("digits", "test", height_px=28, width_px=28, channels=1)
    paths = []
    for at, index in enumerate(np.linspace(0, len(split.labels) - 1, 20).astype(int)):
        path = folder / f"{at:02d}_is_{split.classes[split.labels[index]]}.png"
        Image.fromarray(split.images[index, ..., 0]).save(path)
        paths.append(path)
    return paths
