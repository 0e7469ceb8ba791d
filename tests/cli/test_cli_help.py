"""What the help says: every command, every option of the contract, on 80 columns."""

import re
import shlex

import pytest
import typer

from msn_deploy.cli.app import COMMANDS
from msn_deploy.cli.help import load_command

# the command line as it was promised; options may be added; a name that changes stays accepted (test_cli_spellings.py)
CONTRACT = {
    "demo": ["--out"],
    "train": [
        "--norm",
        "--data",
        "--epochs",
        "--batch-size",
        "--lr",
        "--seed",
        "--device",
        "--samples",
        "--out",
        "--resume",
    ],
    "study": ["--norms", "--data", "--epochs", "--seed", "--out", "--json"],
    "recipes": ["--json"],
    "datasets": ["--json"],
    "import-checkpoint": ["--out", "--json"],
    "export": [
        "--weights",
        "--input-shape",
        "--out",
        "--batch-size",
        "--opset",
        "--target",
        "--no-simplify",
        "--no-fold",
        "--uint8-input",
    ],
    "calibrate": [
        "--data",
        "--method",
        "--samples",
        "--out",
        "--recipe",
        "--seed",
        "--percentile",
        "--no-cache",
        "--table",
    ],
    "build-engine": ["--precision", "--data", "--target", "--backend", "--workspace-mib", "--timing-cache", "--out"],
    "eval": ["--data", "--json"],
    "bench": [
        "--baseline",
        "--device",
        "--compile",
        "--runs",
        "--batch-size",
        "--threads",
        "--seconds",
        "--json",
        "--html",
        "--profile",
        "--builds",
        "--energy",
        "--layers",
        "--against",
        "--fail-if",
        "--markdown",
        "--junit",
    ],
    "diff": ["--data", "--samples", "--all", "--plot", "--trust", "--plugins", "--json"],
    "suite": ["--out", "--seconds", "--threads", "--runs", "--prepare", "--plan", "--json"],
    "infer": [],
    "info": ["--json"],
    "verify": [],
    "bundle": ["--target", "--wheels", "--no-wheels", "--python", "--out", "--to", "--data"],
    "targets": [],
    "doctor": ["--rebuild", "--json"],
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(ok, flag):
    text = ok(flag).out
    assert set(COMMANDS) == set(CONTRACT)
    for name in CONTRACT:
        assert re.search(rf"^  {name} ", text, re.M), name
    assert "Exit codes: 0 fine, 1 a gate failed" in text
    assert "5 a fault of msn-deploy itself" in text
    assert max(map(len, text.splitlines())) <= 100  # the table of commands; their own help fits 80


@pytest.mark.parametrize("name", CONTRACT)
def test_help_of_a_command(ok, monkeypatch, name):
    monkeypatch.delenv("COLUMNS", raising=False)
    outcome = ok(name, "--help")
    assert outcome.err == ""
    assert outcome.out.startswith(f"Usage: msn-deploy {name} ")
    assert max(map(len, outcome.out.splitlines())) <= 80
    offered = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", outcome.out))
    assert offered >= set(CONTRACT[name])
    assert ok(name, "-h").out == outcome.out


@pytest.mark.parametrize("name", CONTRACT)
def test_help_ends_with_examples_that_the_command_takes(ok, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    examples = ok(name, "--help").out.partition("\nExamples:\n")[2].splitlines()
    assert 1 <= len(examples) <= 4
    command = load_command(name)
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["msn-deploy", name]
        assert command.make_context(name, words[2:]).params
    with pytest.raises(typer.TyperException):
        command.make_context(name, ["--no-such-option"])


def test_help_names_what_is_typed_and_lists_options_in_groups(ok):
    text = ok("build-engine", "--help").out
    assert text.startswith("Usage: msn-deploy build-engine ONNX [OPTIONS]\n")
    assert "\nArguments:\n  ONNX  " in text
    for words in ("fp32|fp16|int8", "--dla N", "--timing-cache PATH", "[default: TensorRT's own; range: 0 to 5]"):
        assert words in " ".join(text.split()), words
    assert not re.search(r"<(str|int|path|float)", text)
    groups = dict(re.findall(r"^(\w[\w ]*):\n((?:  .*\n)+)", text, re.M))
    assert list(groups) == ["Arguments", "Options", "INT8 and FP8", "Sizes", "Builder", "DLA", "Examples"]
    assert "--max-drop" in groups["INT8 and FP8"]
    assert "--max-drop" not in groups["Options"]
    assert "msn-deploy recipes [NAME] [OPTIONS]" in ok("recipes", "-h").out


@pytest.mark.parametrize("name", CONTRACT)
def test_help_wins_over_missing_arguments_and_touches_nothing(ok, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    ok(name, "--help", "--quiet")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_who_leaves_early_is_no_error(start):
    process = start("-m", "msn_deploy", "targets", "--json")
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
