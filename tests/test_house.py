"""The house itself: its rooms, how many files it has, and that no two of them need each other.

That imports only go down is a contract in pyproject.toml, which import-linter checks in `make check`.
"""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

import msn_deploy

PACKAGE = Path(msn_deploy.__file__).parent
ROOMS = [
    "cli",
    "pipeline",
    "report",
    "training",
    "bench",
    "graph",
    "quant",
    "engine",
    "nets",
    "tasks",
    "model",
    "machine",
    "data",
    "msn",
    "core",
]
MOST_FILES = 276
WIDEST = 500  # lines of a file: beyond, look for the second concept


def imports_of(package: str) -> dict[str, set[str]]:
    """Return module -> modules that it imports, those in functions too, those for type checkers alone not."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other."""
    above = {module: _reached(imports, module) for module in imports}
    groups = {frozenset(other for other in above[module] if module in above[other]) for module in imports}
    return sorted(sorted(group) for group in groups if group)


def _reached(imports: dict[str, set[str]], start: str) -> set[str]:
    """Return what a module imports, directly or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def test_the_rooms_are_those_of_the_design():
    """A wheel holds _recipes besides."""
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__", "_recipes"}
    assert found == set(ROOMS)


@pytest.mark.skipif(not (PACKAGE.parent / "pyproject.toml").is_file(), reason="needs the source tree")
def test_the_layers_name_every_room():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = (each for each in tomllib.loads(text)["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    assert sorted(room for layer in layers["layers"] for room in layer.split(" | ")) == sorted(ROOMS)


def test_there_are_few_files_and_none_holds_two_concepts():
    files = {path: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    assert len(files) <= MOST_FILES
    assert {path.name: lines for path, lines in files.items() if lines > WIDEST} == {}


def test_no_two_modules_need_each_other():
    assert circles(imports_of("msn_deploy")) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_in_functions_count_and_those_for_types_do_not(tmp_path, monkeypatch):
    folder = tmp_path / "small_house"
    folder.mkdir()
    (folder / "__init__.py").touch()
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from small_house import late\n"
    (folder / "early.py").write_text("import small_house.typed\n")
    (folder / "typed.py").write_text(typed)
    (folder / "late.py").write_text("def f():\n    from small_house import early\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = imports_of("small_house")
    assert found["small_house.late"] == {"small_house.early"}
    assert circles(found) == []
    (folder / "typed.py").write_text(typed + "def f():\n    import small_house.early\n")
    assert circles(imports_of("small_house")) == [["small_house.early", "small_house.typed"]]


def test_a_model_is_parsed_where_files_are_opened_and_nowhere_else():
    parsing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(
            r"FromString\(|load_model_from_string\(data|load_from_string\(|[^'({]onnx\.load\(", path.read_text()
        )
    }
    written_by_tools = {
        "graph/simplify.py",
        "engine/layer_times.py",
        "model/opset.py",
    }  # the last: ONNX's own functions
    assert parsing == {"model/reading.py", *written_by_tools}


def test_what_files_say_of_themselves_is_read_in_one_place():
    parsing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bjson\.loads?\(|tomllib\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert parsing == {"core/reader.py"}


def test_files_are_named_after_checked_names_alone():
    """A field that becomes the name of a file is a FileName; text in paths comes from those."""
    from msn_deploy.core import recipes, suites

    named = (recipes.Recipe, recipes.CalibrationRecipe, suites.Suite, suites.Network)
    assert all(each.__annotations__["name"] == "FileName" for each in named)
