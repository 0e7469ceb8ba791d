"""What SECURITY.md says, as far as it can be tested here; see also test_fuzz.py and test_offline.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8") if (ROOT / "SECURITY.md").is_file() else ""
pytestmark = pytest.mark.skipif(not TEXT, reason="needs the source tree")
NEVER = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
    "yaml.load",
    "shelve.open",
}

_SUSPECT = re.compile(r"\b(eval|exec|system|popen|pickle|marshal|yaml|shelve|shell|allow_pickle|torch\.load)\b")


def _requirements() -> dict[str, Requirement]:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    return {each.name: each for each in map(Requirement, lines)}


def test_the_lower_bounds_are_those_of_the_table() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|.*CVE-\d{4}-\d+", TEXT, re.M))
    assert len(rows) == 6
    found = _requirements()
    assert {name: str(found[name].specifier) for name in rows} == {
        name: f">={version}" for name, version in rows.items()
    }


def test_what_devices_get_is_within_the_lower_bounds() -> None:
    pinned = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.jetson.txt").read_text(encoding="utf-8"), re.M)
    found = _requirements()
    checked = [(name, version) for name, version in pinned if name in found]
    assert {"jinja2", "onnx", "pillow"} <= {name for name, _ in checked}
    for name, version in checked:
        assert Version(version) in found[name].specifier, name


def test_nothing_in_the_package_runs_what_a_file_says() -> None:
    loads = 0
    for path in sorted((ROOT / "msn_deploy").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if _SUSPECT.search(text) else ():
            if not isinstance(node, ast.Call):
                continue
            called, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert called not in NEVER, f"{path}:{node.lineno}"
            assert options.get("shell", "False") == "False", f"{path}:{node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            if called == "torch.load":
                loads += 1
                assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
    assert loads


def test_it_is_linked() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "docs" / "guides" / "data.md",
        ROOT / "docs" / "guides" / "on-a-jetson.md",
    ):
        assert "SECURITY.md" in page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)", TEXT))
def test_its_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
