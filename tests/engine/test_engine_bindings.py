"""NVIDIA's own Python bindings, over libraries with nothing in them: the names that we recorded, and what null becomes.

`make setup` installs the bindings (trt_bindings.py). TensorRT-RTX brings its library, and only its names are read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import trt_bindings
from trt_api import RELEASES, SOURCES, bare, recorded, values
from trt_bindings import WHEELS, folder_of, install
from trt_names import problems

import msn_deploy.engine

HERE = Path(__file__).parent
FOLDER = Path(msn_deploy.engine.__file__).parent
SOURCE = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}
RTX = "rtx-1.7.1"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")


@pytest.fixture(scope="module")
def null_libraries(tmp_path_factory):
    """Return a folder with one library under the names of all releases."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), which makes the library that TensorRT's bindings load")
    folder = tmp_path_factory.mktemp("null")
    flags = ("-shared", "-fPIC", "-Wall", "-Werror")
    subprocess.run([compiler, *flags, "-o", folder / "null.so", HERE / "null_tensorrt.c"], check=True)
    for number in {release.partition(".")[0] for release in WHEELS}:
        for library in LIBRARIES:
            (folder / f"lib{library}.so.{number}").symlink_to("null.so")
    return folder


@pytest.fixture(scope="module")
def real(null_libraries):
    """Return what the bindings of a release say, each read once, in a process of its own."""

    @cache
    def read(release):
        folder = folder_of(release)
        if not folder.is_dir():
            pytest.skip(f"{WHEELS[release]} is not in {folder}: `make setup` installs it, or says why not")
        return run("tensorrt_bindings", null_libraries / f"libnvinfer.so.{release.partition('.')[0]}", folder)

    return read


def run(module, library=None, folder=None):
    """Run trt_real.py; returns what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, (folder, FOLDER.parents[1]))))}
    if library is not None:
        env["LD_LIBRARY_PATH"] = str(library.parent)
    command = [sys.executable, "-X", "faulthandler", HERE / "trt_real.py", module, *filter(None, [library])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def table(found):
    return {name: frozenset(members) for name, members in found["classes"].items()}


def same_as_recorded(found, release):
    """Compare all names and all values of enums."""
    names = {name: members for name, members in recorded()[release].items() if members}
    assert {name: members for name, members in table(found).items() if members} == names
    assert SOURCES[release].partition("==")[2].startswith(found["version"])


@pytest.mark.parametrize("release", WHEELS)
def test_the_recorded_names_and_values_are_those_of_the_bindings(real, release):
    same_as_recorded(real(release), release)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="no tensorrt_rtx: it comes with msn-deploy[rtx]")
def test_the_recorded_names_are_those_of_tensorrt_rtx():
    same_as_recorded(run("tensorrt_rtx"), RTX)


@pytest.mark.parametrize("release", WHEELS)
def test_what_our_code_touches_is_there_or_asked_for(real, release):
    tables = {release: bare(table(real(release)))}
    assert {name: found for name, source in SOURCE.items() if (found := problems(source, tables))} == {}


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("trt_build.py", "builder.create_builder_config", "builder.create_config"),
        ("trt_build.py", "network.num_layers", "network.num_layer"),
        ("trt_build.py", "trt.MemoryPoolType.WORKSPACE", "trt.MemoryPoolType.SCRATCH"),
        ("trt.py", "deserialize_cuda_engine", "deserialize_engine"),
    ],
)
@pytest.mark.parametrize("release", WHEELS)
def test_a_wrong_name_is_found_by_the_bindings(real, release, file, good, bad):
    tables = {release: bare(table(real(release)))}
    assert good in SOURCE[file]
    (finding,) = problems(SOURCE[file].replace(good, bad), tables)
    assert finding.endswith(f"not in {release}")


@pytest.mark.parametrize("release", WHEELS)
def test_masks_follow_the_real_enums(real, release):
    flags = values(release, "NetworkDefinitionCreationFlag")
    bits = [1 << flags[name] for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in flags]
    assert real(release)["mask"] == sum(bits) == {"8": 0b01, "10": 0b11, "11": 0b01}[release.partition(".")[0]]
    assert real(release)["weak"] == (release == "8.6.1")
    severities = values(release, "ILogger.Severity")
    assert severities == {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}


@pytest.mark.parametrize("release", WHEELS)
def test_our_logger_and_our_monitor_are_theirs(real, release):
    found = real(release)
    assert found["is_logger"]
    assert found["warnings"] == ["a warning"]
    if release == "8.6.1":
        assert found["progress"] is None
        return
    shares = [[0.0, "building"], [0.5, "building"]]  # the third call raises, which ends the build
    assert found["progress"] == {"seen": shares, "going_on": [True, False], "held": "KeyboardInterrupt"}


@pytest.mark.parametrize("release", WHEELS)
def test_our_allocator_is_theirs(real, release):
    assert real(release)["allocated"] == [5, 5, 11, [2, 5]]  # the stand-in's addresses are sizes, in elements


@pytest.mark.parametrize("release", WHEELS)
def test_our_calibrator_is_theirs_with_the_table_of_their_release(real, release):
    found = real(release)["calibrated"]
    numbers = {"8.6.1": 8601, "10.3.0": 100300, "10.13.3": 101303}
    if release not in numbers:
        assert found is None
        return
    assert found == {
        "is_theirs": True,
        "algorithm": "CalibrationAlgoType.ENTROPY_CALIBRATION_2",
        "cache": f"TRT-{numbers[release]}-EntropyCalibration2\nx: 3f800000\n",
        "batch": 3,
    }


@pytest.mark.parametrize("release", WHEELS)
def test_null_is_our_error_with_what_the_library_logged(real, release):
    """No builder and no runtime (`null`); a builder that makes no network, a runtime that loads nothing (`hollow`)."""
    null, hollow = real(release)["null"], real(release)["hollow"]
    for kind, text in (null["build"], null["load"], hollow["build"]):
        assert kind == "MissingDevice"
        assert "no GPU is here" in text
    assert hollow["load"][0] == "InputError"
    assert "does not load net.engine" in hollow["load"][1]
    assert null["inspect"] == hollow["inspect"] == ["done", "((), None)"]


def test_every_release_says_where_its_names_come_from():
    assert set(SOURCES) == set(RELEASES)
    assert set(WHEELS) < set(RELEASES)


@pytest.fixture
def pip(monkeypatch):
    """Take the place of pip: `asked` are the wheels, `said` its errors for those that fail."""
    seen = SimpleNamespace(asked=[], said={})

    def run(command, **options):
        Path(next(part for part in command if part.startswith("--target="))[9:]).mkdir(parents=True)
        seen.asked.append(command[-1])
        return subprocess.CompletedProcess(command, command[-1] in seen.said, "", seen.said.get(command[-1], ""))

    monkeypatch.setattr(trt_bindings.subprocess, "run", run)
    return seen


def test_bindings_are_installed_once_and_whole(tmp_path, pip):
    """One fails, which leaves nothing half there and keeps no other away; the next call asks for that one only."""
    pip.said[WHEELS["10.3.0"]] = "WARNING: x\nERROR: no wheel\n"
    (missing,), again = install(tmp_path)
    assert not again
    assert "10.3.0" in missing
    assert missing.endswith("no wheel")
    assert pip.asked == list(WHEELS.values())
    there = {path for path in tmp_path.iterdir() if path.suffix != ".part"}
    assert there == {folder_of(release, tmp_path) for release in WHEELS if release != "10.3.0"}
    pip.asked.clear()
    pip.said.clear()
    assert install(tmp_path) == ([], False)
    assert pip.asked == [WHEELS["10.3.0"]]
    assert all(folder_of(release, tmp_path).is_dir() for release in WHEELS)


def test_an_index_that_does_not_answer_is_asked_once(tmp_path, pip):
    pip.said[WHEELS["8.6.1"]] = "WARNING: Retrying (Retry(total=0)) after connection broken by 'x'\nERROR: none\n"
    (missing,), again = install(tmp_path)
    assert again
    assert "does not answer" in missing
    assert pip.asked == [WHEELS["8.6.1"]]
