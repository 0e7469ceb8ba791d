"""Recipes: the built-in ones, and every way in which one of the user's own can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.recipes import load_recipe, recipe_from_dict, with_settings

BUILT_IN = sorted(path.stem for path in builtin_folder("models").glob("*.toml"))
NETS = ("cnn3", "densenet_bc", "densenet_bc_22", "densenet_bc_c08", "vgg7")
TWINS = (*(f"{net}_producer_{norm}" for net in ("densenet_bc", "densenet_bc_22") for norm in ("bn", "msn")),)
GANS = ("gan_msn", "gan_sn")
POSITIONED = {"unet": "segmentation", "detector": "detection"}  # nets that say where
NORMS = ("msn", "msn-affine", "sn", "bn", "none")  # the others are baselines, for `--norm`
GOOD = """
net = "cnn3"
norm = "bn"
data = "digits"
input_shape = [1, 1, 28, 28]
width = 4
[train]
epochs = 3
batch_size = 8
learning_rate = 0.5
"""


def test_every_net_has_a_recipe_for_every_norm() -> None:
    positioned = [f"{net}_{norm}" for net in POSITIONED for norm in ("msn", "bn", "none")]
    every = [f"{net}_{norm.replace('-', '_')}" for net in NETS for norm in NORMS]
    assert sorted([*every, *positioned, *TWINS, *GANS]) == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_load_and_say_what_their_name_says(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert f"{recipe.net.removeprefix('dc')}_{recipe.norm.replace('-', '_')}" == name
    assert recipe.task == POSITIONED.get(recipe.net, "classification")
    assert recipe_from_dict(recipe.to_dict(), source="round trip") == recipe
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict())), source="round trip") == recipe


def test_the_gans_differ_only_in_norm() -> None:
    msn, sn = (load_recipe(name) for name in GANS)
    assert msn.override(norm="sn") == sn
    assert msn.gan is not None


@pytest.mark.parametrize(
    "change",
    [
        *({"optimizer": "sgd"}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}, {"clip_norm": 1.0}, {"ema": 0.9}),
        *({"validation": 0.2}, {"validation": 0.2, "patience": 2}, {"classifier": "sn"}, {"init": "kaiming"}),
    ],
)
def test_what_a_gan_would_pass_over_is_refused(change: dict[str, Any]) -> None:
    gan = load_recipe("gan_msn").to_dict()
    wrong = {**gan, **change} if change.keys() <= gan.keys() else {**gan, "train": {**gan["train"], **change}}
    with pytest.raises(InputError, match=r"mine: (train\.)?\w+ has no part in .*GAN, got .*\nLeave it out"):
        recipe_from_dict(wrong, source="mine")


def test_a_wrong_gan_section_names_its_key(tmp_path: Path) -> None:
    for text, message in (
        ("[gan]\nlatents = 3", r"\[gan\]: unknown key 'latents'; did you mean 'latent'"),
        ("[gan]\nlatent = 0", r"\[gan\]: latent must be at least 1, got 0"),
        ("[gan]\nbeta1 = 1", r"\[gan\]: beta1 must be below 1, got 1"),
    ):
        with pytest.raises(InputError, match=message):
            _load(tmp_path, f"{GOOD}\n{text}\n")
    with pytest.raises(InputError, match="gan must be a section, got 3"):
        _load(tmp_path, "gan = 3\n" + GOOD)


def test_the_task_is_classification_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    assert recipe.task == "classification"
    older = {key: value for key, value in recipe.to_dict().items() if key != "task"}
    assert recipe_from_dict(older, source="a checkpoint from before there was a choice") == recipe
    assert _load(tmp_path, 'task = "regression"' + GOOD).task == "regression"
    smooth = GOOD + "label_smoothing = 0.1"
    assert _load(tmp_path, 'task = "segmentation"' + smooth).train.label_smoothing == 0.1
    for task in ("regression", "multi-label", "detection"):
        with pytest.raises(InputError, match=f"mine.toml: train.label_smoothing has no part in training for {task}"):
            _load(tmp_path, f'task = "{task}"' + smooth)


@pytest.mark.parametrize("net", NETS)
def test_twins_differ_only_in_norm(net: str) -> None:
    def lines(norm: str) -> list[str]:
        text = (builtin_folder("models") / f"{net}_{norm.replace('-', '_')}.toml").read_text(encoding="utf-8")
        assert text.count(f'norm = "{norm}"\n') == 1
        return text.replace(f'norm = "{norm}"\n', 'norm = ""\n').splitlines()

    assert all(lines(norm) == lines("bn") for norm in NORMS)


def _load(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(str(path))


def test_a_recipe_of_the_users_own(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    assert (recipe.name, recipe.net, recipe.norm, recipe.width) == ("mine", "cnn3", "bn", 4)
    assert recipe.input_shape == (1, 1, 28, 28)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.learning_rate) == (3, 8, 0.5)
    assert (recipe.train.optimizer, recipe.train.weight_decay, recipe.train.seed) == ("adam", 0.0, 0)


def test_the_classifier_is_linear_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    assert recipe.classifier == "linear"
    older = {key: value for key, value in recipe.to_dict().items() if key != "classifier"}
    assert recipe_from_dict(older, source="a checkpoint from before there was a choice") == recipe
    spectral = _load(tmp_path, GOOD.replace("width = 4", 'width = 4\nclassifier = "sn"'))
    assert (spectral.classifier, spectral.override(norm="msn").classifier) == ("sn", "sn")
    assert recipe_from_dict(spectral.to_dict(), source="round trip") == spectral


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('norm = "bn"', 'norm = "msn-afine"', ["norm 'msn-afine'", "did you mean 'msn-affine'"]),
        ('norm = "bn"', 'norms = "bn"', ["unknown key 'norms'", "did you mean 'norm'"]),
        ('norm = "bn"', "norm = 3", ["unknown norm 3", "msn-affine"]),
        ('norm = "bn"\n', "", ["norm", "missing"]),
        ("width = 4", 'width = "4"', ["width must be a whole number", "'4'"]),
        ("width = 4", "width = 4.0", ["width must be a whole number", "4.0"]),
        ("width = 4", "width = true", ["width must be a whole number", "True"]),
        ("width = 4", "width = 0", ["width must be at least 1", "0"]),
        ("width = 4", 'width = 4\ntask = "depth"', ["unknown task 'depth'", "classification, multi-label, segm"]),
        ("width = 4", 'width = 4\nclassifier = "svm"', ["unknown classifier 'svm'", "linear, sn"]),
        ("width = 4", "width = 4\nclassifier = 3", ["unknown classifier 3"]),
        ("width = 4", 'width = 4\nfit = "stretch"', ["unknown fit 'stretch'", "resize, pad"]),
        ("width = 4", 'width = 4\ninit = "lsuv"', ["unknown init 'lsuv'", "plain, kaiming"]),
        ("epochs = 3", "epochs = 3\namp = 1", ["amp must be true or false, got 1"]),
        ("epochs = 3", 'epochs = 3\namp = "yes"', ["amp must be true or false, got 'yes'"]),
        ("width = 4", 'width = 4\nclasifier = "sn"', ["unknown key 'clasifier'", "did you mean 'classifier'"]),
        ("[1, 1, 28, 28]", "[1, 28, 28]", ["input_shape", "[1, 28, 28]"]),
        ("[1, 1, 28, 28]", "[1, 1, 3000, 3000]", ["3000x3000", "too large"]),
        ("[1, 1, 28, 28]", "[1, 1, 28, 2147483648]", ["28x2147483648", "too large"]),
        ("epochs = 3", "epochs = 3\npower_iterations = 1000000", ["power_iterations must be at most 1000"]),
        ('net = "cnn3"', "net = " + "[" * 5000, ["not valid TOML", "nested too deeply"]),
        ('norm = "bn"', f'norm = "{"b" * 90_000}"', ["unknown norm 'bbbb", " [...] "]),
        ("[1, 1, 28, 28]", "[8, 1, 28, 28]", ["input_shape", "[8, 1, 28, 28]"]),
        ("[1, 1, 28, 28]", "[1, 2, 28, 28]", ["input_shape", "1 or 3"]),
        ("[1, 1, 28, 28]", "[1, 1, 28, 2.5]", ["input_shape", "whole numbers"]),
        ("[1, 1, 28, 28]", '"1x28x28"', ["input_shape must be [1, 1 or 3, height, width]", "1x28x28"]),
        ("epochs = 3", "epochs = 0", ["[train]", "epochs", "at least 1"]),
        ("epochs = 3", "epoch = 3", ["[train]", "unknown key 'epoch'", "did you mean 'epochs'"]),
        ("epochs = 3\n", "", ["[train]", "epochs", "missing"]),
        ("batch_size = 8", "batch_size = 8.5", ["[train]", "batch_size must be a whole number"]),
        ("learning_rate = 0.5", "learning_rate = 0", ["[train]", "learning_rate (--lr) must be above 0, got 0"]),
        ("learning_rate = 0.5", "learning_rate = nan", ["[train]", "learning_rate", "nan"]),
        ("epochs = 3", "epochs = 3\nweight_decay = nan", ["weight_decay", "nan"]),
        ("epochs = 3", "epochs = 3\nweight_decay = inf", ["weight_decay", "inf"]),
        ("epochs = 3", "epochs = 3\nweight_decay = -0.1", ["weight_decay", "-0.1"]),
        ("epochs = 3", "epochs = 3\nseed = -1", ["seed", "-1"]),
        ("epochs = 3", f"epochs = 3\nseed = {2**62}", ["seed", str(2**62)]),
        ("epochs = 3", 'epochs = 3\noptimizer = "lion"', ["optimizer", "'lion'", "sgd, adam, adamw"]),
        ("[train]", "[training]", ["unknown key 'training'", "did you mean 'train'"]),
        ('net = "cnn3"', 'net = "cnn3', ["not valid TOML", "line 2"]),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path: Path, old: str, new: str, named: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        _load(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert "mine.toml" in message
    assert len(message.splitlines()) <= 3
    for part in named:
        assert part in message


def test_whole_numbers_serve_as_numbers_and_nothing_else_is_converted(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD.replace("learning_rate = 0.5", "learning_rate = 1\nema = 0"))
    assert (recipe.train.learning_rate, recipe.train.ema) == (1, 0)
    value = {**recipe.to_dict(), "seed": 3}
    for key, wrong in (("ema", True), ("ema", "0.5"), ("epochs", 3.0), ("epochs", False), ("amp", 0), ("augment", 1)):
        train = {**recipe.to_dict()["train"], key: wrong}
        with pytest.raises(InputError, match=rf"^mine \[train\]: .*{key}.*{wrong!r}"):
            recipe_from_dict({**recipe.to_dict(), "train": train}, source="mine")
    with pytest.raises(InputError, match=r"^mine: unknown key 'seed'"):
        recipe_from_dict(value, source="mine")
    with pytest.raises(InputError, match=r"^mine: train must be a section, got 3"):
        recipe_from_dict({**recipe.to_dict(), "train": 3}, source="mine")
    with pytest.raises(AttributeError):
        recipe.width = 3


def test_bytes_that_are_no_text_are_not_valid_toml(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"net = \xff\xfe")
    with pytest.raises(InputError, match=r"mine\.toml is not text in UTF-8"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown recipe 'vgg7_mns'; did you mean 'vgg7_msn'"):
        load_recipe("vgg7_mns")
    assert did_you_mean("zzz", ("bn", "sn")) == "; known are: bn, sn."


def test_a_users_file_beats_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cnn3_msn").width == 16
    (tmp_path / "cnn3_msn").write_text(GOOD, encoding="utf-8")
    assert load_recipe("cnn3_msn").width == 4


def test_override_replaces_what_is_given_and_renames_with_the_norm() -> None:
    recipe = load_recipe("cnn3_msn_affine")
    same = recipe.override(norm=None, data=None, epochs=None, seed=None)
    assert same == recipe
    other = recipe.override(norm="bn", data="mnist", epochs=5, seed=3)
    assert (other.name, other.norm, other.data) == ("cnn3_bn", "bn", "mnist")
    assert (other.train.epochs, other.train.seed, other.train.batch_size) == (5, 3, recipe.train.batch_size)
    assert recipe.override(norm="msn").name == "cnn3_msn"
    with pytest.raises(InputError, match="unknown norm"):
        recipe.override(norm="layer")
    with pytest.raises(InputError, match=r"epochs must be at least 1, got 0"):
        recipe.override(epochs=0)


def test_settings_reach_every_key() -> None:
    recipe = load_recipe("cnn3_msn")
    changed = with_settings(recipe, ["train.ema=0.99", "init=plain", "train.amp = true", 'fit="pad"', "width=3"])
    assert (changed.train.ema, changed.init, changed.train.amp, changed.fit, changed.width) == (
        0.99, "plain", True, "pad", 3,
    )  # fmt: skip
    assert (
        with_settings(changed, ["train.ema=0", *("init=kaiming", "train.amp=false", "fit=resize", "width=16")])
        == recipe
    )
    late = with_settings(recipe, ["train.patience=3", "train.validation=0.1"])  # the first is wrong without the second
    assert (late.train.patience, late.train.validation) == (3, 0.1)
    assert with_settings(load_recipe("gan_msn"), ["gan.latent=7"]).network_input == (7, 1, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.emma=1", "unknown key 'emma'; did you mean 'ema'"),
        ("train.ema=2", "[train]: ema must be below 1, got 2"),
        ("train.amp=yes", "amp must be true or false, got 'yes'"),
        ("widht=3", "unknown key 'widht'; did you mean 'width'"),
        ("train.ema", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("gan.latent=7", "is not KEY=VALUE with a key of a recipe"),
        ("input_shape=[1, 1, 28]", "input_shape must be"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        with_settings(load_recipe("cnn3_msn"), [setting])
    assert message in str(caught.value)
    assert setting in str(caught.value)
