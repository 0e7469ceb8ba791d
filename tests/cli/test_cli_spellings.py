"""Every option that the command line ever had still works, under the name that it had; shared options look alike."""

import importlib
import json

import pytest
import typer

from msn_deploy.cli.app import COMMANDS, _respelled

# What each command accepted before options were shared: "=" takes a value, "!" is a flag. Add to it, never change it.
ACCEPTED = {
    "demo": "--out= -o= --epochs= --seconds= --json=",
    "train": "--norm= --data= --epochs= --batch-size= --lr= --seed= --device= --limit-train= --out= -o= --resume! "
    "--set= --json=",
    "study": "--norms= --data= --epochs= --seed= --device= --limit-train= --every= --set= --out= -o= --json=",
    "recipes": "--json=",
    "datasets": "--json=",
    "import-checkpoint": "--out= -o= --json=",
    "export": "--out= -o= --weights= --input-shape= --batch= --opset= --simplify! --no-simplify! --fold! --no-fold! "
    "--require-fully-folded! --ladder! --json=",
    "calibrate": "--data= --recipe= --method= --percentile= --samples= --seed= --max-drop= --leave-out= --cache! "
    "--no-cache! --sufficiency! --table= --out= -o= --json=",
    "build-engine": "--precision= --data= --method= --samples= --max-drop= --leave-out= --target= --backend= --batch= "
    "--min-batch= --opt-batch= --workspace-mib= --workspace= --timing-cache= --optimization-level= "
    "--version-compatible! --hardware-compatible! --dla= --max-dla-fallback= --replicates= --out= -o= --json=",
    "eval": "--data= --samples= --judge= --threads= --trust! --json=",
    "bench": "--baseline= --provider= --compile! --runs= --batch= --threads= --seconds= --profile= --builds= "
    "--energy! --layers! --trust! --json= --html= --against= --fail-if= --markdown= --junit=",
    "suite": "--out= -o= --seconds= --threads= --runs= --prepare! --plan! --json=",
    "infer": "--threads= --trust! --json!",
    "info": "--json=",
    "diff": "--data= --samples= --all! --plot= --trust! --plugins= --json=",
    "verify": "--data! --no-data! --json!",
    "bundle": "--target= --wheels= --no-wheels! --python= --out= -o= --json=",
    "targets": "--json!",
    "doctor": "--json!",
}


def options_of(name):
    """Every spelling of every option of a command, with whether it is a flag."""
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"msn_deploy.cli.{name.replace('-', '_')}").command)
    params = [each for each in typer.main.get_command(app).params if each.param_type_name == "option"]
    return {text: each.is_flag for each in params for text in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_spelling_of_an_option_is_ever_lost(name):
    known = options_of(name)
    for option in ACCEPTED[name].split():
        words = _respelled(name, [option[:-1]] if option.endswith("!") else [option[:-1], "x.json"])
        assert words[0] in known, option
        assert known[words[0]] == (len(words) == 1), option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_to_a_path(name):
    assert options_of(name)["--json"] is False


@pytest.mark.parametrize(
    ("line", "today"),
    [
        ("train r --limit-train 9", "train r --samples 9"),
        ("train r --limit-train=9", "train r --samples=9"),
        ("bench m --batch 4 --provider=cuda", "bench m --batch-size 4 --device=cuda"),
        ("export m --batch dynamic", "export m --batch-size dynamic"),
        ("export m -- --batch", "export m -- --batch"),
        ("train r --json result", "train r --json result"),
        ("train r --json", "train r --json -"),
        ("train r --json - --lr 1", "train r --json - --lr 1"),
        ("train r --json --lr 1", "train r --json - --lr 1"),
        ("train --json -- r", "train --json - -- r"),
        ("train r --json=x", "train r --json=x"),
        ("infer m a.png --json b.png", "infer m a.png --json - b.png"),
        ("infer m a.png --json out.json", "infer m a.png --json out.json"),
        ("verify --json runs", "verify --json - runs"),
        ("verify runs --json -", "verify runs --json -"),
    ],
)
def test_old_lines_are_read_in_todays_spelling(line, today):
    name, *args = line.split()
    assert _respelled(name, args) == today.split()[1:]


def test_old_names_do_what_the_new_ones_do_and_help_does_not_show_them(ok, tmp_path):
    for name, option in (("a", "--limit-train"), ("b", "--samples")):
        ok("train", "cnn3_none", "--epochs", 1, option, 64, "--out", tmp_path / name, "--set", "width=2")
    a, b = ((tmp_path / name / "cnn3_none.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert "--limit-train" not in ok("train", "--help").out
    assert "--batch " not in ok("bench", "--help").out


def test_flags_work_anywhere_on_the_line(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("-q targets", "targets -q", "--verbose targets --json x.json --quiet", "targets -v"):
        assert cli(*line.split()).code == 0, line


def test_json_of_what_used_to_print_it_only(ok, run_folder, digit_images, tmp_path):
    for name, line in (("infer", (run_folder / "cnn3_msn.onnx", *digit_images[:2])), ("targets", ())):
        out = tmp_path / f"{name}.json"
        shown = ok(name, *line, "--json", out).out
        assert shown == ok(name, *line).out or name == "infer"  # whose latency is its own
        assert len(json.loads(out.read_text())) > 1
        assert shown
