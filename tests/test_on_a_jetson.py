"""docs/guides/on-a-jetson.md: few commands, and the container test runs what it can of them."""

import re
from pathlib import Path

import pytest

from msn_deploy.machine.containers import GPU_FLAGS, GPU_GROUP_FILES, docker_run

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "guides" / "on-a-jetson.md"
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


def test_the_page_runs_the_image_as_doctor_says():
    lines = commands("With the container")
    (alias,) = (line for line in lines if line.startswith("alias"))
    assert alias.partition("docker run ")[2].rstrip("'") == docker_run(gpu="$gpu").partition("docker run ")[2]
    assert docker_run().partition("; docker")[0] in lines
    assert [line for line in lines if line.startswith("gpu=")] == [f"gpu={GPU_FLAGS[0]}"]
    assert f"gpu={GPU_FLAGS[1]}" in PAGE.read_text()


def test_every_docker_run_line_that_is_printed_keeps_the_cache():
    """HOME is a volume: without a name it goes with `--rm`, and with it what is trusted and what was downloaded."""
    pages = [REPO / "README.md", REPO / "Dockerfile.jetson", *(REPO / "docs").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text().splitlines() if "docker run --rm" in line]
    assert len(lines) >= 4
    for line in (*lines, docker_run()):
        assert "-v msn-cache:/cache" in line, line
        assert any(flag in line for flag in (*GPU_FLAGS, "$gpu")), line
        assert f'--group-add "$(stat -c %g {GPU_GROUP_FILES[0]})"' in line, line
