"""Dockerfile.jetson: what can be said of it without building it; `make container-test` builds and runs it."""

import re
from pathlib import Path

import pytest

from msn_deploy import __version__
from msn_deploy.machine.checks import BASE_IMAGE_FILE

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
    for line in re.findall(r"pip (?:install|wheel)[^&]*", text):
        assert not re.search(r"tensorrt|torch|\[(train|export|rtx|dev)", line), line
    assert "grep -iE '^(tensorrt|torch|nvidia)' /tmp/installed; then exit 1" in text


def test_pip_is_given_an_extra_and_no_names():
    """A package that the extra comes to need would be missing in the image, where names were written out."""
    text = FILE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"pip install ([^&]*)", text)
    assert line.strip().endswith('"$(echo /wheels/*.whl)[${extra}]"')
    assert 'if [ "${WITH_PYCUDA}" = 1 ]; then extra=jetson; else extra=runtime; fi' in text


def test_it_runs_as_a_user_with_the_right_groups(final):
    assert re.search(r"^USER 1000$", final, re.M)
    assert "usermod --append --groups video,render,i2c" in final
    assert final.index("RUN ") < final.index("USER 1000") < final.index("ENTRYPOINT")


def test_entry_point_health_check_volumes_and_labels(final):
    assert 'ENTRYPOINT ["msn-deploy"]' in final
    assert re.search(r'HEALTHCHECK .*CMD \["msn-deploy", "doctor", "--json"\]', final)
    assert 'VOLUME ["/data", "/cache"]' in final
    labels = re.findall(r'org\.opencontainers\.image\.([\w.]+)="', final)
    assert labels == ["title", "description", "version", "licenses", "base.name"]
    assert f"ARG VERSION={__version__}" in final


def test_doctor_finds_the_name_of_the_base_where_it_is_written(final):
    assert f'echo "${{BASE_IMAGE}}" >/{BASE_IMAGE_FILE}' in final


def test_what_is_copied_is_not_ignored():
    ignored = (REPO / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = re.findall(r"^COPY (?!--from)(.*)", FILE.read_text(), re.M)
    for name in (name.rstrip("/") for line in copied for name in line.split()[:-1]):
        assert f"!{name}" in ignored
        assert (REPO / name).exists()
