"""Exit codes, and the one door to optional packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from msn_deploy.core import errors
from msn_deploy.core.errors import InputError, fitted, shown, size_text, tamed
from msn_deploy.core.optional import require, version_of

EXIT_CODES = {
    "MsnDeployError": 2,
    "InputError": 2,
    "FoldError": 2,
    "GateError": 1,
    "ParityError": 1,
    "MissingDependency": 3,
    "MissingDevice": 3,
    "InvalidMeasurement": 4,
    "NotComparable": 2,
}


def test_every_error_has_its_exit_code() -> None:
    found = {name: value.exit_code for name, value in vars(errors).items() if hasattr(value, "exit_code")}
    assert found == EXIT_CODES


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    for name, code in EXIT_CODES.items():
        line = next(line for line in tree.splitlines() if f"{name} " in line)
        assert name == "MsnDeployError" or f"exit {code}" in line


def test_parity_error_tells_numbers_and_what_to_do() -> None:
    error = errors.ParityError(source="net.safetensors", stage="simplified", worst=0.25, limit="at most 0.0001")
    message = str(error)
    assert error.worst == 0.25
    assert all(part in message for part in ("net.safetensors: ", "'simplified'", "0.25", "0.0001", "--no-fold"))
    assert len(message.splitlines()) == 2


def test_require_returns_the_module_itself() -> None:
    import json.decoder

    assert require("json.decoder", step="train") is json.decoder


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("torch", "'.[train]'"),
        ("onnxruntime.quantization", "'.[runtime]'"),
        ("tensorrt", "JetPack"),
        ("no_such_package.deep", "pip install no_such_package"),
    ],
)
def test_a_missing_package_says_step_and_remedy(monkeypatch: pytest.MonkeyPatch, module: str, hint: str) -> None:
    package = module.partition(".")[0]
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    if package != "no_such_package":
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingDependency) as caught:
        require(module, step="train")
    message = str(caught.value)
    assert f"`train` needs {package}" in message
    assert hint in message
    assert len(message.splitlines()) <= 3
    assert caught.value.exit_code == 3


def test_the_true_cause_of_a_failed_import_stays_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway_there.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.MissingDependency, match=r"libnvinfer\.so\.10"):
        require("halfway_there", step="build-engine")


def test_version_of() -> None:
    import numpy

    assert version_of("numpy") == numpy.__version__
    assert version_of("no-such-distribution") is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1_047_552, "1023 KiB")),
        *((2_350_000, "2.24 MiB"), (28 << 30, "28 GiB"), (5 << 40, "5120 GiB"), (None, "-")),
    ],
)
def test_a_size_has_three_digits_and_a_binary_unit(count: int | None, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, été, 日本\n", "plain, été, 日本\n"),
        ("\x1b[31mred\x07\t\r", "\\x1b[31mred\\x07\\t\\r"),
        ("a\x9b31mb\x7f\x85", "a\\x9b31mb\\x7f\\x85"),
        ("\u202egnp.exe\u2028\ufeff", "\\u202egnp.exe\\u2028\\ufeff"),
        ("byte \udcff, half \ud83d", "byte \\xff, half \\ud83d"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text: str, shown: str) -> None:
    assert tamed(text) == shown
    assert str(InputError(text)) == shown


def test_long_text_loses_its_middle() -> None:
    assert fitted("abc", 3) == "abc"
    cut = fitted("a" * 500 + "z" * 500, 100)
    assert (len(cut), cut[:10], cut[-10:]) == (100, "a" * 10, "z" * 10)
    assert " [...] " in cut
    assert len(shown("x" * 10**6)) == 120


@pytest.mark.parametrize(
    "text",
    [
        f"x.toml: name must be text, got {'a' * 100_000!r}.\nType something else.",
        "a" * 1000 + "\n" + "b" * 1000 + "\n" + "c" * 1000,
        "\n".join(f"line {at}" for at in range(50)),
        f"one\ntwo\n{'three ' * 10_000}",
        "\x1b" * 1000,
    ],
)
def test_a_message_has_three_lines_and_600_characters_at_most(text: str) -> None:
    message = str(InputError(text))
    assert len(message) <= 590
    assert len(message.splitlines()) <= 3
    assert message[:5] == tamed(text)[:5]
    assert message[-5:] == tamed(text)[-5:]
