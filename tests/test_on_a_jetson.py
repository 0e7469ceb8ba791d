"""docs/on-a-jetson.md: few commands, and the container test runs what it can of them."""

import re
from pathlib import Path

import pytest

from msn_deploy.machine.checks import DOCKER_RUN

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "on-a-jetson.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree")


def commands(title: str) -> list[str]:
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("title", ["With a bundle", "With the container"])
def test_ten_commands_are_enough(title):
    assert 5 <= len(commands(title)) <= 10


def test_the_container_test_runs_them():
    script = " ".join((REPO / "tests/container/run.sh").read_text().replace("\\\n", " ").split())
    for line in commands("With the container"):
        if line.startswith("msn "):
            command = "msn-deploy " + line.removeprefix("msn ").split(" --")[0]
            command = command.replace("build-engine runs/cnn3_msn.int8.onnx", "build-engine runs/cnn3_msn.onnx")
            command = command.replace("eval runs/cnn3_msn.int8.onnx", 'eval "runs/$name.onnx"')
            assert command in script, line
    for step in ("verify", "install.sh", "build.sh", "eval.sh digits", "bench.sh"):
        assert f" ./{step}" in " " + " ".join(commands("With a bundle"))
        assert f"orin/{step}" in script


def test_the_page_mounts_what_doctor_says():
    (alias,) = (line for line in commands("With the container") if line.startswith("alias"))
    for mount in re.findall(r"-v (\S+)", DOCKER_RUN):
        assert f"-v {mount}" in alias
    assert all(flag in alias for flag in ("--runtime nvidia", "--read-only", "--tmpfs /tmp"))
