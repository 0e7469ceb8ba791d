"""A name never becomes a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from msn_deploy.core.artifacts import Parent, publish, read_sidecar, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import is_file_name, new_file_name
from msn_deploy.core.recipes import load_calibration_recipe, load_recipe, recipe_from_dict
from msn_deploy.core.suites import load_suite
from msn_deploy.pipeline.suite import default_out

PLAIN = ["a", "été", "my net (2)", "a.b.c", "x" * 120, "a-b_c", "...a"[3:]]
PATHS = ["", ".", "..", "../a", "a/b", "/a", "a/", "a\0b", "x" * 256]
HARD_TO_TYPE = ["-a", ".a", " a", "a ", "a\\b", "a\nb", "\x1b[1m", "a\u202eb", "x" * 121, "é" * 61, "a\udcffb"]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_are_taken(name: str) -> None:
    assert is_file_name(name)
    assert new_file_name(name) == name


@pytest.mark.parametrize("name", [*PATHS, *HARD_TO_TYPE])
def test_other_names_are_refused_for_new_files(name: str) -> None:
    assert is_file_name(name) == (name in HARD_TO_TYPE)
    with pytest.raises(ValueError, match="becomes that of a file"):
        new_file_name(name)


HOSTILE = ["../x", "/tmp/x", "..", "a/b", "\\u001b[1m", "-x", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_of_a_user_names_a_place(tmp_path: Path, name: str) -> None:
    """Recipes, suites, their networks, the recipes in them, and calibration recipes."""
    recipe = 'net = "cnn3"\nnorm = "bn"\ndata = "digits"\ninput_shape = [1, 1, 28, 28]\nwidth = 4\n[train]\n'
    recipe += "epochs = 1\nbatch_size = 8\nlearning_rate = 0.5\n"
    row = '[[network.row]]\nname = "BN"\nrecipe = "cnn3_bn"\n'
    files = {
        load_recipe: f'name = "{name}"\n{recipe}',
        load_calibration_recipe: f'name = "{name}"\ndata = "digits"\n',
        load_suite: f'name = "{name}"\n[[network]]\nname = "net"\n{row}',
    }
    path = tmp_path / "mine.toml"
    for load, text in files.items():
        path.write_text(text)
        with pytest.raises(InputError, match=r"mine\.toml: name becomes that of a file: "):
            load(str(path))
    path.write_text(f'[[network]]\nname = "{name}"\n{row}')
    with pytest.raises(InputError, match=r"mine\.toml \[network\.1\]: name becomes that of a file: "):
        load_suite(str(path))
    path.write_text(f'[[network]]\nname = "net"\nrecipe = {{ name = "{name}" }}\n{row}')
    network = load_suite(str(path)).networks[0]
    with pytest.raises(InputError, match="name becomes that of a file: "):
        network.recipe_of(network.rows[0])
    value = load_recipe("cnn3_bn").to_dict()
    with pytest.raises(InputError, match="name becomes that of a file: "):
        recipe_from_dict(value | {"name": name.replace("\\u001b", "\x1b")}, source="a checkpoint")


def test_a_suite_writes_below_the_folder_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = default_out(load_suite("smoke"))
    assert out.name == "smoke"
    assert ".." not in out.parts


@pytest.mark.parametrize("name", ["", "..", "a/..", "/"])
def test_a_sidecar_speaks_of_files_beside_it_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.onnx"
    publish(path, b"net", kind="onnx", parents=[Parent(role="onnx", file=name, sha256="0" * 64)])
    with pytest.raises(InputError, match=r"net\.onnx\.json describes .*, which is not the name of a file"):
        read_sidecar(path)
    assert sidecar_path(path).is_file()
