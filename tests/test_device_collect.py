"""`make device-test`: a step that fails or hangs does not end the others, and first-run.md knows each step."""

import re
import runpy
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "guides" / "first-run.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree")


@pytest.fixture(scope="module")
def device():
    return runpy.run_path(str(REPO / "tests/device/collect.py"))


def test_every_step_ends_and_the_file_tells_of_each(device, tmp_path):
    step, out = device["Step"], tmp_path / "device-test.txt"
    todo = [
        step(name="a fact", line="cat /gone; echo of this board"),
        step(name="fine", line="exit 4", expected=(0, 4)),
        step(name="bad", line="echo why >&2; exit 3", expected=(0,)),
        step(name="hangs", line="sleep 1000 & echo begun; wait", limit_s=0.5, expected=(0,)),
        step(name="long", line="yes | head -c 100000", expected=(0,)),
        step(name="last", line=f"cat {out}", expected=(0,)),
    ]
    assert device["collect"](todo, out, root=tmp_path) == 2
    text = out.read_text()
    assert [line.split()[0] for line in text.splitlines()[:6]] == ["fact", "ok", "FAILED", "TOO", "ok", "ok"]
    assert "$ echo why >&2; exit 3\nwhy\n" in text
    assert "begun" in text
    assert "60000 characters left out" in text
    assert "not run yet: 1 steps" in text  # as the last one found it


def test_the_page_says_what_to_expect_of_each_step(device):
    told = re.findall(r"^\| ([^|]+?) +\|", PAGE.read_text(), re.M)
    assert [step.name for step in device["steps"]()] == told[1:]


def test_no_step_leaves_the_checkout(device):
    for step in device["steps"]():
        assert "sudo" not in step.line
        assert not re.search(r"(^|\s)rm\s", step.line)
