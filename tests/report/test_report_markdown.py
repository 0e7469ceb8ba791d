"""In Markdown a name is only text, whatever is in it."""

import json
import re

import suite_case

from msn_deploy.report.page import markdown_table, markdown_text
from msn_deploy.report.suite import index_from, markdown

HOSTILE = "<img src=x onerror=alert(1)>|`a`*b*[c](https://evil)\n# d @you www.evil &amp; _e_ ~~f~~ \x1b[1m"


def test_nothing_in_plain_text_is_read_as_markup():
    text = markdown_text(HOSTILE)
    assert "\n" not in text
    assert "\x1b" not in text
    assert re.findall(r"[<>]", text) == []
    assert re.findall(r"(?<!\\)[|`*\[\]~]", text) == []
    assert not re.search(r"https://|www\.|@you|(?<!\\)# d|&amp; _", text)
    assert markdown_text("cnn3_msn.int8, batch 1 (a & b)") == "cnn3_msn.int8, batch 1 (a & b)"


def test_a_cell_stays_a_cell():
    lines = markdown_table(("model", "ms"), [(HOSTILE, "1"), ("b", "2")], right=(1,)).splitlines()
    assert len(lines) == 4
    assert lines[1] == "|---|--:|"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


def test_names_in_a_suite_stay_in_their_cells_and_lines():
    hostile = json.loads(
        json.dumps(suite_case.index()).replace("DenseNet", json.dumps(HOSTILE)[1:-1]).replace("MSN producer", "<b>|x")
    )
    text, before = markdown(index_from(hostile)), markdown(index_from(suite_case.index()))
    assert text.count("\n") == before.count("\n")
    assert not re.search(r"<img|<b>|\x1b", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
