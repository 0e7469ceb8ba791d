"""What `make jetson-wheels` recorded, held against pyproject.toml and the pins of the image; needs no network."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
RESULT = REPO / "benchmarks" / "results" / "jetson-wheels.json"
pytestmark = pytest.mark.skipif(not RESULT.is_file(), reason="needs the source tree")


@pytest.fixture(scope="module")
def resolved():
    return json.loads(RESULT.read_text())


def test_every_dependency_has_a_wheel_for_both_pythons_and_pycuda_alone_is_built(resolved):
    assert list(resolved) == ["3.10", "3.12"]
    for python, files in resolved.items():
        tag = "cp" + python.replace(".", "")
        for each in files:
            if each["name"] == "pycuda":
                assert each["file"].endswith(".tar.gz")
                continue
            interpreters, abi, platform = each["file"].removesuffix(".whl").split("-")[-3:]
            assert each["file"].endswith(".whl"), each
            assert platform == "any" or platform.endswith("aarch64"), each
            assert abi in ("none", "abi3", tag), each
            assert any(name in ("py3", tag) or abi == "abi3" for name in interpreters.split(".")), each
            assert re.fullmatch("[0-9a-f]{64}", each["sha256"])


def test_what_pyproject_asks_for_was_resolved(resolved):
    from msn_deploy.pipeline.wheels import device_requirements

    wanted = {re.match(r"[\w.-]+", each)[0].lower() for each in device_requirements()} | {"pycuda"}
    for files in resolved.values():
        assert wanted <= {each["name"] for each in files}


def test_no_tensorrt_and_no_torch_comes_along_not_even_behind_another(resolved):
    for files in resolved.values():
        assert len(files) > 15  # all that is needed, not only what pyproject.toml names
        assert not [each["file"] for each in files if re.match(r"tensorrt|torch|nvidia", each["name"])]


def test_the_jetson_extra_asks_for_neither():
    from importlib import metadata

    of = {
        extra: {line.partition(";")[0] for line in metadata.requires("msn-deploy") if f"extra == '{extra}'" in line}
        for extra in ("jetson", "runtime")
    }
    assert {line.split(">")[0] for line in of["jetson"] - of["runtime"]} == {"pycuda"}
    assert of["runtime"] < of["jetson"]
    lines = [line for line in metadata.requires("msn-deploy") if "extra ==" not in line or "jetson" in line]
    assert not [line for line in lines if re.match(r"tensorrt|torch|nvidia", line)]


def test_the_image_is_pinned_to_what_was_resolved(resolved):
    spec = importlib.util.spec_from_file_location("jetson_wheels", REPO / "benchmarks" / "jetson_wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pins = (REPO / "constraints.jetson.txt").read_text()
    assert pins == module.constraints(resolved)
    assert "numpy==" in pins
    assert "constraints.jetson.txt" in (REPO / "Dockerfile.jetson").read_text()
