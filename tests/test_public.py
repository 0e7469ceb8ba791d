"""`import msn_deploy` in use: examples of docstrings run, the Tab key finds each name, layers show their arguments."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
from PIL import Image

import msn_deploy

pytestmark = pytest.mark.slow

CHAIN = ("train", "export", "calibrate")  # what they write, the other examples read
NAMES = [name for name in msn_deploy.__all__ if name != "__version__" and name not in ("export_onnx", *CHAIN)]
WITHOUT = {
    "compare",
    "measure",
    "quantize",
    *(name for name in NAMES if name.startswith("MSN") and name != "MSNConv2d"),
}


def _examples(name: str) -> list[doctest.DocTest]:
    thing = getattr(msn_deploy, name)
    return [test for test in doctest.DocTestFinder(recurse=False).find(thing, name) if test.examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/` is what the examples of the chain have made."""
    place = tmp_path_factory.mktemp("examples")
    Image.new("L", (28, 28), 90).save(place / "digit.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in CHAIN:
            _run(name)
    return place


def _run(name: str) -> None:
    for test in _examples(name):
        said: list[str] = []
        done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        assert not done.failed, "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_docstring_run(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    assert bool(_examples(name)) == (name not in WITHOUT)
    _run(name)


def test_the_names_are_found_by_the_tab_key_and_each_is_documented() -> None:
    assert set(msn_deploy.__all__) <= set(dir(msn_deploy))
    completer = pytest.importorskip("rlcompleter").Completer({"msn_deploy": msn_deploy})
    found = {completer.complete("msn_deploy.cal", at) for at in range(2)}
    assert "msn_deploy.calibrate(" in found
    for name in msn_deploy.__all__:
        thing = getattr(msn_deploy, name)
        assert name == "__version__" or inspect.getdoc(thing), name


def test_a_layer_has_the_signature_of_its_twin() -> None:
    parameters = inspect.signature(msn_deploy.MSNConv2d).parameters
    assert list(parameters)[:3] == ["in_channels", "out_channels", "kernel_size"]
    assert {"bias", "affine", "momentum", "init_gain"} <= set(parameters)
    assert "args" not in parameters

    class Own(msn_deploy.MSNConv2d):
        def __init__(self, width: int) -> None:
            super().__init__(width, width, 3, 1, 1, 1, 1, False)

    assert list(inspect.signature(Own).parameters) == ["width"]
    assert Own(4).shift is None
    with pytest.raises(TypeError, match="paddin"):
        msn_deploy.MSNConv2d(3, 8, 3, paddin=1)
