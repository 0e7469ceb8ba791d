from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from doctor_machines import ARM

from msn_deploy.machine.libraries import cuda_version, find_libraries, has_compiler, installed_version, version_in

ELF = b"\x7fELF" + bytes(100)


def write(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_versions_come_from_the_names_of_libraries(tmp_path):
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.3.0", "libcudart.so.12.6.68"):
        write(tmp_path, f"{ARM}/{name}", ELF)
    libraries = find_libraries(tmp_path)
    assert version_in(libraries, "libnvinfer") == "10.3.0"
    assert version_in(libraries, "libcuda") is None
    assert cuda_version(tmp_path, libraries) == "12.6.68"
    assert not has_compiler(tmp_path)
    write(tmp_path, "usr/local/cuda-10.2/version.txt", b"CUDA Version 10.2.300\n")
    write(tmp_path, "usr/local/cuda-10.2/bin/nvcc", b"")
    assert cuda_version(tmp_path, libraries) == "10.2.300"
    assert has_compiler(tmp_path)


def test_packages_are_found_without_importing_them():
    assert installed_version("onnx") not in (None, "?")
    assert installed_version("no_such_module") is None
    assert installed_version("json") == "?"
    code = (
        "import sys, msn_deploy.engine as engine; engine.checks(); "
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'pycuda'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_goes_by_several_names(monkeypatch):
    """Whatever doctor or a result knew one of them by."""
    for module, distribution in (
        ("tensorrt", "tensorrt-cu12"),
        ("tensorrt", "tensorrt-cu13"),
        ("tensorrt_rtx", "tensorrt-rtx-cu12"),
        ("tensorrt_rtx", "tensorrt-rtx-cu13"),
        ("onnxruntime", "onnxruntime-gpu"),
    ):
        monkeypatch.setattr("msn_deploy.machine.libraries.version_of", {distribution: "9.8"}.get)
        assert installed_version(module) == "9.8"
