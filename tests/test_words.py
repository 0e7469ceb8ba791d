"""The phrases of words.py: none is in what users read."""

import pytest
import words


@pytest.mark.skipif(not (words.ROOT / "docs").is_dir(), reason="needs the source tree")
def test_nothing_that_users_read_has_a_phrase():
    assert words.complaints() == []


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("The file is no checkpoint.", ["is not a"]),
        ("There is no checkpoint here; it is no longer\nneeded.", []),
        ("Leave `--max-drop`\naway, or leave it out.", ["leave out"]),
        ("Every plan is held, byte for byte, against its sidecar.", ["compare with"]),
        (
            "It goes on. It is told\nwhere files lie beside it.",
            ["continue, resume", "is in, is next to", "is reported, is shown"],
        ),
    ],
)
def test_phrases_are_found_across_lines_and_good_english_is_not(text, better):
    assert [each for _, each in words.phrases_of(text)] == better


def test_strings_are_read_whole_and_identifiers_are_not(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "msn_deploy").mkdir()
    for name in ("README.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("Fine.\n```\nit goes on\n```\n")
    (tmp_path / "CHANGELOG.md").write_text("# C\n\n## Unreleased\n\nWhat stands in it.\n\n## 0.1\n\nIt goes on.\n")
    (tmp_path / "msn_deploy" / "x.py").write_text(
        'def goes_on(so_many):  # it goes on\n    return f"{so_many} is "\\\n        f"no {goes_on}", "well"\n'
    )
    monkeypatch.setattr(words, "ROOT", tmp_path)
    assert [where.split(": ")[0] for where in words.complaints()] == ["CHANGELOG.md:5", "msn_deploy/x.py:2"]
