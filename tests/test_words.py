"""The phrases of words.py: none is new in what users read, none of the known ones is gone."""

import pytest
import words


@pytest.mark.skipif(not (words.ROOT / "docs").is_dir(), reason="needs the source tree")
def test_no_new_phrase_and_no_known_one_that_is_gone():
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
    assert [where.split(": ")[0] for where in words.findings().values()] == ["CHANGELOG.md:5", "msn_deploy/x.py:2"]


def test_shrinking_drops_what_is_gone_and_adds_nothing(tmp_path, monkeypatch, capsys):
    file = tmp_path / "known.txt"
    monkeypatch.setattr(words, "KNOWN", file)
    monkeypatch.setattr(words, "findings", lambda: {"it goes on": "a:1", "so many": "b:1"})
    file.write_text("it goes on\nno one's\n")
    assert words.complaints() == ["b:1", 'known.txt: "no one\'s" is gone: python tests/words.py --shrink']
    monkeypatch.setattr("sys.argv", ["words.py", "--shrink"])
    assert words.main() == 1
    assert file.read_text() == "it goes on\n"
    assert capsys.readouterr().out == "b:1\n"
