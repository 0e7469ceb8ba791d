"""What reaches a terminal: text that it only shows, of a length to be read; and what if nothing can be written."""

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from cli_explained import assert_explained

from msn_deploy.cli import output
from msn_deploy.cli.app import COMMANDS
from msn_deploy.core.errors import InputError

ESCAPE = "\x1b[31mred\x07\x9b\x7f\u202e"
OBEYED = ("\x1b", "\x07", "\x9b", "\x7f", "\u202e")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A working folder in which every kind of name and value commands a terminal, or is very long."""
    monkeypatch.chdir(tmp_path)
    recipe = {"name": ESCAPE, "long": "x" * 100_000}
    (tmp_path / "long.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.items()))
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    (tmp_path / f"{ESCAPE}.toml").write_text("=")
    (tmp_path / "long.json").write_text(json.dumps({"schema": ESCAPE + "y" * 100_000}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    return tmp_path


LINES = [
    *(["train", name] for name in ("long.toml", "deep.toml", f"{ESCAPE}.toml", ESCAPE, "x" * 100_000)),
    *(["suite", name] for name in ("long.toml", "deep.toml", ESCAPE)),
    *(["bench", "m.onnx", "--against", name] for name in ("long.json", "deep.json")),
    *(["bench", name] for name in ("long.json", f"{ESCAPE}.onnx")),
    *(["train", "cnn3_msn", "--set", value] for value in (ESCAPE, "width=" + "[" * 20_000, "y" * 100_000)),
    *(
        ["eval", "m.onnx", option, value]
        for option in ("--threads", "--samples")
        for value in (ESCAPE, "1" * 400, "z" * 9999)
    ),
    *(["bench", "m.onnx", "--seconds", value] for value in ("nan", "inf", "1e300", ESCAPE)),
    *([ESCAPE], ["x" * 100_000], ["eval", f"--{ESCAPE}"], ["verify", ESCAPE], ["infer", "m.onnx", ESCAPE]),
    *(["export", f"{ESCAPE}.safetensors"], ["export", "net.py:f", "--input-shape", "9" * 5000]),
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_message_is_short_and_commands_no_terminal(cli, hostile, line):
    outcome = cli(*line)
    assert outcome.code == 2
    assert_explained(outcome.err, "")
    assert len(outcome.err) <= 600
    assert not [each for each in OBEYED if each in outcome.err + outcome.out]


def test_results_notes_logs_and_tables_command_no_terminal(capsys):
    output.start(quiet=False)
    output.say(ESCAPE)
    output.note(ESCAPE)
    output.show_table([[ESCAPE, "[bold]b[/bold] :smile:"]], head=("a", "b"))
    output.emit({ESCAPE: ESCAPE}, output.Path("-"))
    output.logging.getLogger("msn_deploy.x").warning("%s\n%s", ESCAPE, "long" * 1000)
    said = capsys.readouterr()
    assert not [each for each in OBEYED if each in said.out + said.err]
    assert "[bold]b[/bold] :smile:" in said.out
    assert json.loads(said.out[said.out.index("{") :]) == {ESCAPE: ESCAPE}
    assert len(said.err.splitlines()[-1]) < 600


class Terminal(io.StringIO):
    """A terminal with colours."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(("colours", "styled"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_verdict_has_its_colour_on_a_terminal(monkeypatch, colours, styled):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **colours}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    output.show_table([["a.onnx", "broken"], ["ok.onnx", "ok"]], head=("file", "verdict"))
    assert ("\x1b[31mbroken" in terminal.getvalue(), "\x1b[32mok" in terminal.getvalue()) == (styled, styled)
    assert "\x1b[32mok.onnx" not in terminal.getvalue(), "a name is no verdict"


def test_a_narrow_terminal_does_without_columns_and_breaks_no_number(monkeypatch, capsys):
    rows = [["a_network_of_some_length.onnx", "0.490", "0.512", "0.998", "FASTER"]]
    head = ("model", "median", "p90", "ratio", "verdict")

    def printed(width):
        monkeypatch.setenv("COLUMNS", str(width))
        output.show_table(rows, head=head, right=(1, 2, 3), spare=(2, 1), least_name=12)
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width
        return lines[-1].split()

    assert printed(80) == rows[0]
    assert printed(50)[1:] == ["0.490", "0.512", "0.998", "FASTER"]
    assert printed(42)[1:] == ["0.490", "0.998", "FASTER"]
    name, *others = printed(34)
    assert (others, len(name)) == (["0.998", "FASTER"], 16)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("rows", [1, 2000])  # what fits a buffer fails at its flush, what does not before it
def test_a_result_that_cannot_be_written_is_an_input_error(monkeypatch, rows):
    for write in (lambda: output.show_table([["a", "b"]] * rows, head=("x", "y")), lambda: output.say("a b\n" * rows)):
        monkeypatch.setattr("sys.stdout", full := open("/dev/full", "w"))  # noqa: SIM115
        with pytest.raises(InputError, match="standard output cannot be written: No space left"):
            write()
        monkeypatch.undo()
        with suppress(OSError):  # once more
            full.close()


def test_a_number_of_any_option_has_bounds(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("calibrate m.onnx --samples {}", "train cnn3_msn --epochs {}", "eval m.onnx --samples {}"):
        outcome = cli(*line.format(2**32).split())
        assert (outcome.code, outcome.out) == (2, "")
        assert_explained(outcome.err, f"{line.split()[2]} {2**32} is too large")


STREAMS = {
    "stdout closed": (">&-", 2, "standard output"),
    "stdout full": (">/dev/full", 2, "No space left"),
    "stderr closed": ("2>&-", 0, ""),
    "stderr full": ("2>/dev/full", 0, ""),
    "all closed": ("<&- >&- 2>&-", 2, ""),
    "all full": (">/dev/full 2>/dev/full", 2, ""),
}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("command", ["targets", "--help", "--version", "targets --help", "targets --json -"])
def test_streams_that_are_full_or_closed_have_a_code_of_their_own(process_env, tmp_path, command, name):
    """Never that of a failed gate, and never Python's own."""
    redirection, code, words = STREAMS[name]
    line = f'"$0" -m msn_deploy {command} {redirection}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable], env=process_env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert all(word in done.stderr for word in words.split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_the_encoding_of_stdout_lacks_is_written_out(process_env):
    env = {**process_env, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    code = "from msn_deploy.cli import app, output; app.main(['--version']); output.say('caf\\u00e9')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"caf\\xe9\n")


@pytest.mark.slow
def test_a_failure_keeps_its_code_where_nothing_can_be_said(process_env, tmp_path):
    for redirection in ("2>/dev/full", "2>&-", ">&- 2>&-"):
        line = f'"$0" -m msn_deploy eval gone.onnx {redirection}'
        done = subprocess.run(["sh", "-c", line, sys.executable], env=process_env, cwd=tmp_path, timeout=60)
        assert done.returncode == 2


@pytest.mark.slow
def test_what_is_opened_next_never_takes_the_place_of_stdout(process_env, tmp_path):
    code = (
        "import os, sys; from msn_deploy.cli.app import main; main(['--version']); "
        "fd = os.open('file', os.O_WRONLY | os.O_CREAT); sys.exit(0 if fd > 2 else 9)"
    )
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" >&- 2>&- <&-', sys.executable, code], env=process_env, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_5_for_a_fault_of_ours(cli, monkeypatch, tmp_path, name):
    """And says so in one line; the last `except` is not one command's."""
    monkeypatch.chdir(tmp_path)
    module = __import__(f"msn_deploy.cli.{name.replace('-', '_')}", fromlist=["command"])

    def broken() -> None:
        raise ZeroDivisionError(ESCAPE + "z" * 10_000)

    monkeypatch.setattr(module, "command", broken)
    outcome = cli(name)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (5, "", 1)
    assert len(outcome.err) <= 600
    assert not [each for each in OBEYED if each in outcome.err]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "too little memory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), "Give a shorter name"),
        (OverflowError("int too big to convert"), "too large to compute"),
    ],
)
def test_what_does_not_fit_the_machine_is_an_error_message(cli, monkeypatch, error, words):
    from msn_deploy.cli import targets

    def broken() -> None:
        raise error

    monkeypatch.setattr(targets, "command", broken)
    outcome = cli("targets")
    assert outcome.code == 2
    assert_explained(outcome.err, words)
