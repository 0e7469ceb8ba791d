"""Networks from a Python file of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.nets.registry import net_from_file

GOOD = """
from torch import nn
from neighbour import WIDTH

def make():
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3), nn.BatchNorm2d(WIDTH))

not_a_function = 3
def text():
    return "a network"
def fails():
    return nn.Linear(3, 4)(__import__("torch").ones(5))
def refuses():
    from msn_deploy.core.errors import InputError
    raise InputError("the user's own message")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "own.py").write_text(GOOD)
    return tmp_path / "own.py"


@pytest.fixture(autouse=True)
def clean_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)


def test_a_factory_gives_a_network_in_evaluation_mode(file: Path) -> None:
    path = list(sys.path)
    model = net_from_file(f"{file}:make")
    assert isinstance(model, nn.Sequential)
    assert not any(module.training for module in model.modules())
    assert model(torch.ones(1, 1, 5, 5)).shape == (1, 6, 3, 3)
    assert sys.path == path


def test_nothing_is_written_beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "alone.py").write_text("import torch\n\ndef make():\n    return torch.nn.ReLU()\n")
    assert isinstance(net_from_file(f"{tmp_path / 'alone.py'}:make"), nn.ReLU)
    assert [path.name for path in tmp_path.iterdir()] == ["alone.py"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "defines no function called 'missing'"),
        ("not_a_function", "defines no function called 'not_a_function'"),
        ("text", "returned str, not a torch.nn.Module"),
        ("fails", "fails raised RuntimeError"),
        ("refuses", "the user's own message"),
    ],
)
def test_a_factory_that_is_none_is_named(file: Path, name: str, why: str) -> None:
    path = list(sys.path)
    with pytest.raises(InputError, match=why):
        net_from_file(f"{file}:{name}")
    assert sys.path == path


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.py does not exist[\s\S]*FILE\.py:FACTORY"):
        net_from_file(f"{tmp_path / 'gone.py'}:make")


@pytest.mark.parametrize(
    ("text", "why"),
    [("def make(:\n", "SyntaxError"), ("import no_such_package\n", "ModuleNotFoundError"), ("1 / 0\n", "ZeroDivision")],
)
def test_a_file_that_does_not_import(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(InputError, match=why) as caught:
        net_from_file(f"{tmp_path / 'broken.py'}:make")
    assert len(str(caught.value).splitlines()) <= 3


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is not a Python file"):
        net_from_file(f"{tmp_path / 'notes.txt'}:make")
