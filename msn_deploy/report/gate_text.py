"""A gate's judgement for people (Markdown, for a pull request) and for build servers (JUnit XML)."""

from __future__ import annotations

from xml.etree import ElementTree

from msn_deploy.bench.gate import Gate, described
from msn_deploy.bench.profile import in_words
from msn_deploy.bench.result import BenchResult
from msn_deploy.core.errors import tamed
from msn_deploy.report.page import markdown_table, markdown_text

_SAID = {
    "PASSED": "a slowdown beyond the limit is excluded",
    "FAILED": "slower than the limit allows",
    "UNSETTLED": "no slowdown is proved, but the interval reaches beyond the limit; measure longer",
}


def markdown(result: BenchResult, gate: Gate) -> str:
    """Return a heading, a table with a row per model, and the conditions."""
    states = {each.state for each in gate.findings}
    worst = next(state for state in ("FAILED", "UNSETTLED", "PASSED") if state in states)
    title = worst if result.validity.valid else "INVALID"
    medians = {arm.name: arm.median_ms for arm in result.arms}
    rows = [
        (
            each.name,
            f"{medians[each.name]:.3f}",
            f"{each.ratio.ratio:.3f}",
            f"{each.ratio.low:.3f} to {each.ratio.high:.3f}",
            each.state,
        )
        for each in gate.findings
    ]
    profile = result.profile
    return "\n".join(
        [
            f"### Latency: {title} (slower than {markdown_text(gate.against)} by at most {100 * gate.limit:g} %)",
            "",
            markdown_table(("model", "median ms", "ratio", "95 % interval", "gate"), rows, right=(1, 2)),
            "",
            *([] if result.validity.valid else [markdown_text(result.validity.message), ""]),
            *(f"{state}: {_SAID[state]}." for state in _SAID if state in states),
            "",
            markdown_text(f"{profile.name}: {in_words(profile, result.environment)}; {result.environment.cpu}."),
            "",
        ]
    )


def junit(result: BenchResult, gate: Gate) -> str:
    """Return one test case per model: a failure where it is too slow, an error where the run is invalid."""
    valid = result.validity.valid
    failed = sum(each.state == "FAILED" for each in gate.findings) if valid else 0
    counts = {"tests": len(gate.findings), "failures": failed, "errors": 0 if valid else len(gate.findings)}
    suite = ElementTree.Element("testsuite", {"name": "msn-deploy bench"} | {key: str(n) for key, n in counts.items()})
    medians = {arm.name: arm.median_ms for arm in result.arms}
    for each in gate.findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname="latency", name=tamed(each.name), time=f"{medians[each.name] / 1e3:.6f}"
        )
        if not valid:
            ElementTree.SubElement(case, "error", message=tamed(result.validity.message))
        elif each.state == "FAILED":
            message = f"{described(each.ratio)}, allowed is {1 + gate.limit:g}, against {gate.against}"
            ElementTree.SubElement(case, "failure", message=tamed(message))
        else:
            ElementTree.SubElement(case, "system-out").text = f"{described(each.ratio)}: {_SAID[each.state]}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
