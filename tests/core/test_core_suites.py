"""Suites: every built-in one can be planned, and every mistake in a file of the user's is named."""

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.suites import load_suite

NAMES = sorted(path.stem for path in builtin_folder("suites").glob("*.toml"))
GOOD = """
batches = [1, 2]
precisions = ["fp32"]

[[network]]
name = "cnn3"
reference = "BN folded"
recipe = { data = "digits", width = 3, train = { epochs = 2 } }

[[network.row]]
name = "BN folded"
recipe = "cnn3_bn"

[[network.row]]
name = "MSN folded"
recipe = "cnn3_msn"
"""


def written(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def recipes_of(path):
    return [network.recipe_of(row) for network in load_suite(path).networks for row in network.rows]


def test_the_built_in_suites_are_these():
    assert NAMES == ["jetson", "paper", "smoke"]


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_suite_names_recipes_that_exist_on_data_that_is_bundled(name):
    suite = load_suite(name)
    assert suite.name == name
    for network in suite.networks:
        assert network.reference == "BN folded"
        assert network.rows[0].name == "BN unfolded"
        assert not network.rows[0].fold
        for row in network.rows:
            recipe = network.recipe_of(row)
            assert recipe.data == "digits"
            assert recipe.norm.upper() in row.name


def test_the_paper_suite_holds_what_the_readme_promises():
    suite = load_suite("paper")
    assert [network.title for network in suite.networks] == ["cnn3", "VGG7", "DenseNet-BC, 22 layers"]
    assert (suite.batches, list(suite.precisions), suite.provider, suite.threads) == (
        (1, 32),
        ["fp32", "int8"],
        "cpu",
        1,
    )
    rows = {row.name: network.recipe_of(row).net for network in suite.networks for row in network.rows}
    assert rows["MSN folded, producer"] == "densenet_bc_22_producer"
    assert rows["MSN folded, consumer"] == "densenet_bc_22"


def test_the_jetson_suite_builds_engines_of_the_same_networks():
    jetson, paper = load_suite("jetson"), load_suite("paper")
    assert (jetson.provider, list(jetson.precisions), jetson.replicates) == ("engine", ["fp16", "int8"], 3)
    assert list(jetson.networks) == list(paper.networks)


def test_keys_of_the_recipe_are_replaced_and_others_kept(tmp_path):
    network = load_suite(written(tmp_path, GOOD)).networks[0]
    recipe = network.recipe_of(network.rows[1])
    assert (recipe.width, recipe.train.epochs, recipe.norm) == (3, 2, "msn")
    assert recipe.train.batch_size == 32


def test_what_is_given_on_the_command_line_wins(tmp_path):
    suite = load_suite(
        written(tmp_path, GOOD.replace('reference = "BN folded"', 'reference = "BN folded"\nseconds = 9.0'))
    )
    changed = suite.override(seconds=0.75, threads=3)
    assert (changed.seconds, changed.threads, changed.networks[0].seconds) == (0.75, 3, None)
    assert suite.override(threads=3).networks[0].seconds == 9.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batches = [1, 2]", "batches = [1, 1]", "batches must be one or more, none of them twice"),
        ("batches = [1, 2]", "batches = [1000000]", "batches[0] must be at most 65536, got 1000000"),
        ("batches = [1, 2]", "threads = 0", "threads must be at least 1, got 0"),
        ("batches = [1, 2]", "seconds = 1e99", "seconds must be at most 86400, got 1e+99"),
        ("batches = [1, 2]", "batches = [0]", "batches[0] must be at least 1, got 0"),
        ("batches = [1, 2]", 'batches = "1"', "batches must be a list, got '1'"),
        ("batches = [1, 2]", "replicates = 2", "replicates are of engines"),
        ("batches = [1, 2]", 'provider = "gpu"', "unknown provider 'gpu'; did you mean 'cpu'"),
        ("batches = [1, 2]", "speed = 3", "unknown key 'speed'"),
        ('precisions = ["fp32"]', 'precisions = ["fp33"]', "did you mean 'fp32'"),
        ('precisions = ["fp32"]', 'precisions = "fp32"', "precisions must be a list"),
        ('name = "cnn3"', 'name = "../cnn3"', "becomes that of a file"),
        ('reference = "BN folded"', 'reference = "BN fold"', "did you mean 'BN folded'"),
        ('recipe = "cnn3_msn"', 'recipe = "cnn3_mns"', "did you mean 'cnn3_msn'"),
        ('recipe = "cnn3_msn"', 'recipe = "gan_msn"', "gan"),
        ('name = "MSN folded"', 'name = "BN folded"', "a name of its own"),
        ("width = 3", "widht = 3", "unknown key 'widht'"),
        ("[[network.row]]", "[network.row]", "row"),
        (
            'recipe = "cnn3_msn"',
            'recipe = "cnn3_msn"\nfolded = true',
            "[network.1.row.2]: unknown key 'folded'; did you mean",
        ),
        ('recipe = "cnn3_msn"', "", "[network.1.row.2]: missing key 'recipe'"),
        ("train = { epochs = 2 }", "train = 3", "train must be a section, got 3"),
        ("train = { epochs = 2 }", "train = { epoch = 2 }", "[train]: unknown key 'epoch'; did you mean 'epochs'"),
        (
            'name = "cnn3"',
            'name = "cnn3"\nreferense = "a"',
            "[network.1]: unknown key 'referense'; did you mean 'reference'",
        ),
        ("batches = [1, 2]", "netwrok = 3", "unknown key 'netwrok'; did you mean 'network'"),
        ("batches = [1, 2]", "batches = [1, true]", "batches[1] must be a whole number, got True"),
        ("[[network]]", "[network]", "written as tables"),
        ("batches = [1, 2]", "batches = [1, 2", "not valid TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, said):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        recipes_of(path)
    assert said in str(caught.value)


def test_an_unknown_name_is_a_suite_not_a_recipe():
    with pytest.raises(InputError, match="unknown suite 'papre'; did you mean 'paper'"):
        load_suite("papre")
