"""Dockerfile.jetson: what can be said of it without building it; `make container-test` builds and runs it."""

import re
from pathlib import Path

import pytest

from msn_deploy import __version__
from msn_deploy.machine.checks import BASE_IMAGE_FILE
from msn_deploy.machine.jetpacks import JETPACKS

REPO = Path(__file__).resolve().parent.parent
FILE = REPO / "Dockerfile.jetson"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs the source tree")


@pytest.fixture(scope="module")
def final() -> str:
    """The stage that becomes the image."""
    return re.split(r"^FROM ", FILE.read_text(), flags=re.M)[-1]


def test_the_final_stage_installs_nothing_itself(final):
    assert "pip" not in final
    assert "apt-get" not in final
    assert re.findall(r"^COPY (.*)", final, re.M) == ["--from=builder /opt/msn-deploy /opt/msn-deploy"]


def test_neither_tensorrt_nor_torch_is_asked_of_pip():
    text = FILE.read_text()
    for line in re.findall(r"pip (?:install|wheel|download)[^&]*", text):
        assert not re.search(r"tensorrt|torch|\[(train|export|rtx|dev)", line), line
    assert "grep -iE '^(tensorrt|torch|nvidia)' /tmp/installed; then exit 1" in text


def test_pip_is_given_an_extra_and_no_names():
    """A package that the extra comes to need would be missing in the image, where names were written out."""
    text = FILE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"/opt/msn-deploy/bin/pip install ([^&]*)", text)
    assert line.strip().endswith('"$(echo /wheels/*.whl)[${extra}]"')
    assert 'if [ "${WITH_PYCUDA}" = 1 ]; then extra=jetson; else extra=runtime; fi' in text
    assert 'if [ "${WITH_VIDEO}" = 1 ]; then extra="${extra},video"; fi' in text


def test_opencv_comes_only_where_it_is_asked_for():
    assert re.findall("^ARG WITH_VIDEO=(.*)", FILE.read_text(), re.M) == ["0"]
    pyproject = (REPO / "pyproject.toml").read_text()
    assert [line.partition(" = ")[0] for line in pyproject.splitlines() if "opencv" in line] == ["video"]
    assert "opencv-python-headless==" in (REPO / "constraints.jetson.txt").read_text()


def test_what_differs_between_two_builds_is_fixed(final):
    """`make container-test` compares the layers; this day's date and the hash seed differ in no two builds of a day."""
    days = re.findall("^ARG SOURCE_DATE_EPOCH=(.*)", FILE.read_text(), re.M)
    assert len(days) == 2
    assert days[0] == days[1]
    assert final.index("ARG SOURCE_DATE_EPOCH") < final.index("useradd --uid")
    assert "PYTHONHASHSEED=0 /opt/msn-deploy/bin/python -m compileall" in FILE.read_text()


def test_it_runs_as_a_user_and_groups_come_by_number(final):
    """A group's number on the device is not that of its name in the image: `docker run --group-add` tells it."""
    assert re.search(r"^USER 1000$", final, re.M)
    assert "usermod" not in final
    assert "groupadd" not in final
    assert final.index("RUN ") < final.index("USER 1000") < final.index("ENTRYPOINT")


def test_entry_point_volumes_and_labels(final):
    assert 'ENTRYPOINT ["msn-deploy"]' in final
    assert re.findall("^HEALTHCHECK (.*)", final, re.M) == ["NONE"]  # it would run beside `bench`
    assert 'VOLUME ["/data", "/cache"]' in final
    labels = re.findall(r'org\.opencontainers\.image\.([\w.]+)="', final)
    assert labels == ["title", "description", "version", "licenses", "base.name", "base.digest"]
    assert f"ARG VERSION={__version__}" in final


def test_packages_are_taken_by_their_hashes_unless_it_is_said_otherwise():
    text = FILE.read_text().replace("\\\n", " ")
    assert re.findall("^ARG WITH_HASHES=(.*)", text, re.M) == ["1"]
    downloads = re.findall(r"pip download ([^&;]*)", text)
    assert len(downloads) == 2
    assert all("--require-hashes --no-deps " in each for each in downloads)
    # pip takes the tools of an isolated build without hashes, so that these are there before pycuda is looked at. What
    # is installed after that comes from there alone, also what builds pycuda.
    assert "--no-build-isolation --no-binary=pycuda" in downloads[1]
    assert 'if [ "${WITH_HASHES}" = 1 ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/pinned; fi' in text
    pins = (REPO / "constraints.jetson.txt").read_text().splitlines()[1:]
    assert all(
        re.fullmatch(r"[\w.-]+==[^ ]+; python_version == '3\.1[02]' --hash=sha256:[0-9a-f]{64}", each) for each in pins
    )
    assert {"setuptools", "wheel", "numpy", "pycuda"} <= {each.partition("==")[0] for each in pins}


def test_the_base_can_be_named_by_its_digest():
    text = FILE.read_text()
    assert re.findall("^ARG BASE_DIGEST=(.*)", text, re.M) == [""]
    assert re.findall("^FROM ([^ \n]*)", text, re.M) == ["${BASE_IMAGE}${BASE_DIGEST:+@}${BASE_DIGEST}"] * 2


def test_doctor_finds_the_name_of_the_base_where_it_is_written(final):
    assert f'echo "${{BASE_IMAGE}}" >/{BASE_IMAGE_FILE}' in final


def test_each_jetpack_that_runs_the_package_has_a_base():
    """With its TensorRT and Python as the one table of JetPacks says."""
    listed = [line for line in FILE.read_text().splitlines() if re.match("#   JetPack", line)]
    for jetpack in (each for each in JETPACKS if each.runs_package):
        (line,) = (line for line in listed if re.search(rf"[ ,]{re.escape(jetpack.name)}[ ,]", line))
        assert f"TensorRT {'.'.join(jetpack.tensorrt.split('.')[:2])}" in line
        assert f"Python {jetpack.python}" in line


def test_what_is_copied_is_not_ignored():
    ignored = (REPO / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = re.findall(r"^COPY (?!--from)(.*)", FILE.read_text(), re.M)
    for name in (name.rstrip("/") for line in copied for name in line.split()[:-1]):
        assert f"!{name}" in ignored
        assert (REPO / name).exists()
