"""`bench --baseline auto RECIPE`: three rows are made and compared; what is there is taken."""

import json
from dataclasses import replace

import pytest

from msn_deploy.core.recipes import load_recipe
from msn_deploy.pipeline.forms import Form, is_done, make_all, steps_of, three_rows

pytestmark = pytest.mark.slow

QUICK = ("--seconds", "0.5", "--threads", "1")
RECIPE = """
net = "cnn3"
norm = "msn"
data = "digits"
input_shape = [1, 1, 28, 28]
width = 2

[train]
epochs = 1
batch_size = 128
learning_rate = 0.01
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small_msn.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_three_rows_are_made_from_a_recipe_and_made_once(ok, recipe, tmp_path, monkeypatch):
    command = ("bench", recipe, "--baseline", "auto", "--runs", tmp_path / "runs", *QUICK)
    outcome = ok(*command, "--json", tmp_path / "bench.json")
    steps = [line.split(",")[0] for line in outcome.err.splitlines() if " epoch " not in line]
    assert [step for step in steps if not step.startswith(("wrote ", "next: ", "train: ", "test: ", "measuring "))] == [
        "train small_bn on digits",
        "export small_bn.unfolded.b1.onnx",
        "export small_bn.b1.onnx",
        "train small_msn on digits",
        "export small_msn.b1.onnx",
    ]
    value = json.loads((tmp_path / "bench.json").read_text())
    assert value["baseline"] == "BN unfolded"
    facts = {arm["name"]: arm["facts"] for arm in value["arms"]}
    assert list(facts) == ["BN unfolded", "BN folded", "MSN folded"]
    assert [each["folded"] for each in facts.values()] == [False, True, True]
    assert [each["norm"] for each in facts.values()] == ["bn", "bn", "msn"]
    assert facts["BN unfolded"]["runtime_norm_fusions"] == "off"
    assert facts["BN folded"]["graph"] == facts["MSN folded"]["graph"]
    assert facts["BN unfolded"]["accuracy"] == facts["BN folded"]["accuracy"] > 0.1
    assert "same graph: BN folded, MSN folded" in outcome.out
    forms = three_rows(load_recipe(str(recipe)), batch=1)
    again = []
    paths = make_all(list(forms.values()), tmp_path / "runs", tell=again.append)
    assert again == []
    assert [path.name for path in paths] == ["small_bn.unfolded.b1.onnx", "small_bn.b1.onnx", "small_msn.b1.onnx"]

    training, export = steps_of(forms["BN folded"], tmp_path / "runs")
    assert is_done(training)
    assert is_done(export)
    assert not is_done(steps_of(replace(forms["BN folded"], opset=18), tmp_path / "runs")[1])
    with monkeypatch.context() as patch:
        patch.setattr("msn_deploy.pipeline.forms.__version__", "0.0")
        assert not is_done(export)
    (tmp_path / "runs" / "small_bn.state.safetensors").write_bytes(b"")  # what a training that was killed leaves
    assert not is_done(training)


@pytest.mark.parametrize(
    ("norm", "third"), [("bn", "MSN"), ("none", "MSN"), ("msn-affine", "MSN-affine"), ("sn", "SN")]
)
def test_the_norm_of_the_recipe_is_the_third_row_and_bn_is_held_against_msn(recipe, norm, third):
    forms = three_rows(load_recipe(str(recipe)).override(norm=norm), batch=2)
    assert list(forms) == ["BN unfolded", "BN folded", f"{third} folded"]
    assert [form.recipe.norm for form in forms.values()] == ["bn", "bn", third.lower()]
    assert {form.batch for form in forms.values()} == {2}


def test_without_a_folder_each_recipe_has_its_own_place_in_the_cache(recipe, home_of_its_own):
    first = load_recipe(str(recipe))
    places = {steps_of(Form(recipe=each), None)[0].out.parent for each in (first, first.override(epochs=2))}
    assert len(places) == 2
    assert {place.parent for place in places} == {home_of_its_own / "trained"}


def test_what_cannot_be_made_is_refused(cli, recipe, tmp_path):
    for args, said in (
        (("gan_msn", "--baseline", "auto"), "is a GAN"),
        (("cnn3_mns", "--baseline", "auto"), "did you mean 'cnn3_msn'"),
        ((recipe, recipe, "--baseline", "auto"), "takes one RECIPE, not 2"),
        ((recipe, "--runs", tmp_path), "--baseline auto RECIPE"),
    ):
        outcome = cli("bench", *args)
        assert outcome.code == 2
        assert said in outcome.err


def test_compile_needs_a_checkpoint(cli, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    outcome = cli("bench", tmp_path / "a.onnx", "--compile")
    assert outcome.code == 2
    assert "--compile is for checkpoints" in outcome.err
