"""What a suite says of its numbers: sentences, a table, a page."""

import suite_case

from msn_deploy.report.suite import findings, index_from, markdown, suite_html


def test_findings_say_plainly_what_is_faster_and_what_is_not():
    vgg7, consumer, producer, twin = findings(index_from(suite_case.index()))
    assert vgg7 == (
        "VGG7: MSN folded is the same graph as BN folded, so no faster; what differs is noise",
        "FP32, batch 1: 1.001 (0.991 to 1.011) SAME",  # batch 32 is invalid
    )
    assert consumer[0] == "DenseNet: MSN consumer is no faster than BN folded"
    said = "DenseNet: MSN producer is faster than BN folded in part; BN producer is the same graph as it"
    numbers = "FP32, batch 1: 0.800 (0.790 to 0.810) FASTER; FP32, batch 32: 0.800 (0.790 to 0.810) SAME"
    assert producer == (said, numbers)
    assert twin[0] == "DenseNet: BN producer is faster than BN folded in part"


def test_faster_everywhere_is_not_in_part():
    index = suite_case.index()
    index["cases"].pop()
    assert findings(index_from(index))[-2][0].startswith("DenseNet: MSN producer is faster than BN folded; BN producer")


def test_a_name_with_a_comma_does_not_break_the_sentence():
    index = suite_case.index()
    for case in index["cases"]:
        case["network"] += ", 22 layers"
        for arm in case["arms"]:
            arm["row"] = arm["row"].replace("MSN consumer", "MSN folded, consumer")
    said = findings(index_from(index))[1][0]
    assert said == "DenseNet (22 layers): MSN folded (consumer) is no faster than BN folded"


def test_the_page_draws_what_the_findings_name_and_says_what_is_the_same_graph():
    page = suite_html(index_from(suite_case.index()))
    assert page.count('class="point c0"') == 2  # VGG7 at the batch that is valid, in two cuts
    assert page.count('class="point c1"') == 2 * 6
    assert "MSN folded against BN folded, VGG7, FP32, batch 1: 1.001 [0.991, 1.011], same graph" in page
    assert page.count('<span class="v same graph">') == 2


def test_the_table_has_a_row_per_form_and_two_columns_per_batch():
    text = markdown(index_from(suite_case.index()))
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        head
        == "| network | form | accuracy | file | batch 1, ms | against BN folded | batch 32, ms | against BN folded |"
    )
    assert len(rows) == 7
    assert {row.count("|") for row in (head, rule, *rows)} == {9}
    invalid = "2.500 (invalid) | 1.250 (1.240 to 1.260) SLOWER |"
    assert (
        rows[0] == f"| VGG7 | BN unfolded, FP32 | 97.53 % | 3 KiB | 2.500 | 1.250 (1.240 to 1.260) SLOWER | {invalid}"
    )
    assert "| 4.000 | \N{EN DASH} |" in rows[3]
    assert "**VGG7-b32 is invalid**: invalid: 4 of 9 blocks. Cool it." in text
    assert "ONNX Runtime 1.2.3, provider cpu, on AMD EPYC, 1 thread;" in text


def test_a_case_without_a_result_leaves_a_dash_and_a_reason():
    index = suite_case.index()
    index["cases"][3] |= {"arms": [], "invalid": "too slow"}
    text = markdown(index_from(index))
    assert (
        "| MSN producer, FP32 | 97.53 % | 3 KiB | 3.200 | 0.800 (0.790 to 0.810) FASTER | \N{EN DASH} | \N{EN DASH} |"
        in text
    )
    assert "**DenseNet-b32 is invalid**: too slow" in text
    assert "too slow" in suite_html(index_from(index))
