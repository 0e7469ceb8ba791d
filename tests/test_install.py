"""`make` asks for the CPU build of torch first, and falls back: a dry run over a stand-in for both package indexes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="needs the source tree"),
]


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _add_wheel(folder: Path, name: str, version: str) -> None:
    """Write an empty package into an index: NAME/FILE.whl, which the server lists."""
    (folder / name).mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / name / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve two indexes: cpu/ has torch for CPUs, default/ the one that brings CUDA."""
    folder = tmp_path_factory.mktemp("indexes")
    _add_wheel(folder / "cpu", "torch", "2.13.0+cpu")
    _add_wheel(folder / "default", "torch", "2.13.0")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _install(address: str, torch_index: str, venv: Path) -> str:
    """Return what the Makefile's line for torch says that it would install."""
    venv.mkdir()
    pip = f"{sys.executable} -m pip install --dry-run --ignore-installed --no-cache-dir --disable-pip-version-check"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
    environment |= {"PIP_INDEX_URL": f"{address}/default/", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [
            *("make", f"VENV={venv}", "PYTHON=true", f"PIP={pip}", f"TORCH_INDEX={torch_index}", "TORCH_WAIT=1"),
            str(venv / ".torch"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to download" in done.stdout.splitlines()[0]  # what it costs is said first
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("Would install"))
    return told


def test_torch_for_cpus_where_its_index_answers(address: str, tmp_path: Path) -> None:
    assert _install(address, f"{address}/cpu/", tmp_path / "venv") == "Would install torch-2.13.0+cpu"


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_the_default_index_where_it_does_not(how: str, address: str, tmp_path: Path) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if how == "is silent":
            port.listen()
        other = f"http://127.0.0.1:{port.getsockname()[1]}/cpu/"
        assert _install(address, other, tmp_path / "venv") == "Would install torch-2.13.0"
