"""What the command line answers before any command: help by name, versions, and the Tab key."""

import sys

import pytest

from msn_deploy.cli.app import COMMANDS


def test_help_of_a_command_by_its_name(ok):
    assert ok("help", "eval").out == ok("eval", "--help").out
    assert ok("help").out == ok("--help").out


def test_help_of_an_unknown_command_is_an_error(cli):
    outcome = cli("help", "evl")
    assert (outcome.code, "'eval'" in outcome.err) == (2, True)


def test_version_names_what_is_installed(ok):
    import numpy

    import msn_deploy

    lines = ok("version").out.splitlines()
    assert lines[0] == f"msn-deploy {msn_deploy.__version__}" == ok("--version").out.strip()
    found = dict(line.split(maxsplit=1) for line in lines[1:])
    assert (found["python"], found["numpy"]) == (sys.version.split()[0], numpy.__version__)
    assert "torch" in found


@pytest.mark.parametrize(
    ("words", "answers"),
    [("msn-deploy ", set(COMMANDS)), ("msn-deploy ca", {"calibrate"}), ("msn-deploy train --ep", {"--epochs"})],
)
def test_the_tab_key_completes_commands_and_options(ok, monkeypatch, words, answers):
    monkeypatch.setenv("_MSN_DEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert set(ok().out.split()) >= answers


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(ok, shell):
    assert "_MSN_DEPLOY_COMPLETE" in ok("--show-completion", shell).out
