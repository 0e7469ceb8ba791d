"""Claims are judged by the numbers: constructed studies for each verdict."""

from __future__ import annotations

import pytest
from report_pages import study

from msn_deploy.report.study import Studied, answer, judge_claims


def _studied(
    *, sparsity: float = 0.5, variance: float = 1.0, drift: float = 0.5, parameters: int = 100, windows: int = 5
) -> Studied:
    window = {"sparsity": [sparsity] * 4, "variance": [variance] * 4, "drift": [drift] * 4}
    return Studied(parameters=parameters, layers=["a"] * 4, windows=[window] * windows, history=[])


def _verdicts(**norms: Studied) -> dict[str, str]:
    return {each.claim: each.verdict for each in judge_claims(norms)}


def test_the_paper_is_right() -> None:
    found = _verdicts(
        bn=_studied(parameters=120),
        sn=_studied(sparsity=0.6, variance=0.9),
        msn=_studied(drift=1e-7, parameters=110),
    )
    assert found == {
        "SN raises gradient sparsity against BN": "holds",
        "SN lowers gradient variance against BN": "holds",
        "SN drifts in mean and MSN does not": "holds",
        "MSN has fewer trainable parameters than BN": "holds",
    }


def test_the_paper_is_wrong() -> None:
    found = _verdicts(
        bn=_studied(drift=0.0),
        none=_studied(),
        sn=_studied(sparsity=0.4, variance=1.1, drift=0.001),
        msn=_studied(drift=0.2, parameters=100),
    )
    assert set(found.values()) == {"does not hold"}
    assert len(found) == 6


def test_it_is_not_clear() -> None:
    half = {"sparsity": [0.6, 0.4], "variance": [0.9, 1.1], "drift": [0.5, 0.5]}
    even = {key: [0.5, 0.5] if key == "sparsity" else [1.0, 1.0] for key in half}
    bn, sn = (Studied(parameters=5, layers=["a", "b"], windows=[each] * 5, history=[]) for each in (even, half))
    found = _verdicts(bn=bn, sn=sn, msn=_studied(drift=0.3, parameters=4))
    assert found == {
        "SN raises gradient sparsity against BN": "unclear",
        "SN lowers gradient variance against BN": "unclear",
        "SN drifts in mean and MSN does not": "unclear",
        "MSN has fewer trainable parameters than BN": "holds",
    }


def test_the_sentence_has_the_numbers() -> None:
    claims = judge_claims(
        {"bn": _studied(parameters=2000), "sn": _studied(sparsity=0.75), "msn": _studied(parameters=1900)}
    )
    numbers = {each.claim: each.numbers for each in claims}
    assert numbers["SN raises gradient sparsity against BN"] == (
        "median 0.75 with SN, 0.5 with BN; higher in 100% of layers and windows"
    )
    assert numbers["MSN has fewer trainable parameters than BN"] == "1,900 against 2,000, 100 fewer (5.00%)"


@pytest.mark.parametrize(("windows", "said"), [(1, "1 window; needs 5"), (4, "4 windows; needs 5")])
def test_too_few_windows_judge_nothing_but_the_parameters(windows: int, said: str) -> None:
    norms = {"bn": _studied(parameters=9), "sn": _studied(windows=windows), "msn": _studied(parameters=8)}
    *watched, counted = judge_claims(norms)
    assert {(each.verdict, each.numbers) for each in watched} == {("too short to tell", said)}
    assert counted.verdict == "holds"
    assert answer(norms) == ""


def test_the_answer_says_who_drifts_and_by_how_much() -> None:
    norms = {"bn": _studied(drift=0.0), "sn": _studied(drift=0.61), "msn": _studied(drift=1e-7)}
    assert answer(norms) == "BN and MSN keep the mean at 0; SN drifts by 0.61 deviations."
    assert answer({"none": _studied(drift=0.3)}) == "No norm drifts by 0.3 deviations."
    assert ">MSN keeps the mean at 0; SN drifts by" in study(("sn", "msn"))


@pytest.mark.parametrize(
    ("norms", "count"), [(("sn",), 0), (("sn", "msn"), 1), (("bn", "none"), 0), (("none", "sn"), 2)]
)
def test_what_is_not_there_is_not_judged(norms: tuple[str, ...], count: int) -> None:
    assert len(judge_claims({norm: _studied() for norm in norms})) == count


def test_the_page_has_the_bounds_and_why_there_are_none() -> None:
    page = study()
    for text in ("3.14", "4.32e+03", "8.77e+07", "2.72", "not given: softmax"):
        assert page.count(f">{text}<") == 1, text
