"""Recipes of calibrations: the built-in ones load, and what is wrong in one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.recipes import load_calibration_recipe
from msn_deploy.quant.scales import check_method

BUILTIN = sorted(path.stem for path in builtin_folder("calibration").glob("*.toml"))


def test_which_are_built_in() -> None:
    assert BUILTIN == ["digits", "fashion-mnist", "image-folder", "mnist"]


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_recipe_loads(name: str) -> None:
    recipe = load_calibration_recipe(name)
    assert recipe.name == name
    assert recipe.data == ("images" if name == "image-folder" else name)
    assert recipe.samples >= 100
    assert (recipe.seed is None) == (name != "image-folder")
    check_method(recipe.method, recipe.percentile)


def test_a_path_beats_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text('data = "mine"\nseed = 7\nsamples = 33\nmethod = "mse"\n')
    recipe = load_calibration_recipe("digits")
    assert (recipe.data, recipe.seed, recipe.samples, recipe.method) == ("mine", 7, 33, "mse")
    assert load_calibration_recipe("mnist").data == "mnist"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("samples = 16", "missing .*'data'"),
        ('data = "a"\nsample = 16', "unknown key 'sample'; did you mean 'samples'"),
        ('data = "a"\nsamples = 0', "samples must be at least 1, got 0"),
        ('data = "a"\nsamples = "9"', "samples must be a whole number, got '9'"),
        ('data = "a"\nseed = -1', "seed must be at least 0, got -1"),
        ('data = "a"\nseed = true', "seed must be a whole number"),
        ('data = "a"\nseed = 1.5', "seed must be a whole number"),
        ('data = "a"\npreprocess = "none"', "unknown preprocess 'none'; known are: model"),
        ("data = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_calibration_recipe(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'digit'; did you mean 'digits'\?"):
        load_calibration_recipe("digit")
