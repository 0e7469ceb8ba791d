from __future__ import annotations

from array import array
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from msn_deploy.bench import BenchResult, MeasureOptions, Profile, Samples, compare
from msn_deploy.bench.gate import Gate, judge_baseline, judge_regression, parse_limit
from msn_deploy.bench.measure import ArmFacts, ArmSamples
from msn_deploy.bench.validity import Validity
from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import GateError, InputError, NotComparable
from msn_deploy.machine.environment import Environment
from msn_deploy.machine.state import Reading
from msn_deploy.report.gate_text import junit, markdown

MACHINE = Environment(
    machine="a board",
    cpu="a processor",
    gpu="ga10b",
    cores_usable=4,
    memory_mib=7619,
    governor="performance",
    power_mode="15W (id 0)",
    clocks_pinned=True,
    gpu_limits_mhz=(612, 612),
)
IMAGES = Parent(role="data:test", file="digits", sha256="ab" * 32)
FACTS = ArmFacts(images=IMAGES, runtime_norm_fusions="on")


def run_of(seed: int = 1, throttled: int = 0, noise: float = 0.01, **levels_ms: float) -> BenchResult:
    random = np.random.default_rng(seed)
    arms, blocks = [], 40
    for at, (name, level) in enumerate(levels_ms.items()):
        raw = 1e6 * level * random.lognormal(0, noise, (blocks, 30)) * random.lognormal(0, noise, (blocks, 1))
        taken = tuple(array("q", block) for block in raw.astype(int).tolist())
        slots = tuple(range(at, len(levels_ms) * blocks, len(levels_ms)))
        starts = tuple(10**7 * slot for slot in slots)
        arms.append(ArmSamples(name=name, facts=FACTS, blocks=taken, block_starts_ns=starts, slots=slots))
    mhz = [306.0] * throttled + [612.0] * (len(levels_ms) * blocks + 1 - throttled)
    readings = [Reading(throttled={}, clocks_mhz={"gpu": each}, temperatures_c={}, cooling={}) for each in mhz]
    return compare(
        Samples(arms=tuple(arms), options=MeasureOptions(), readings=tuple(readings)),
        baseline=next(iter(levels_ms)),
        environment=MACHINE,
        profile=Profile(provider="cpu", threads=2),
    )


BASE = run_of(seed=1, first=1.0, second=2.0)


def gate_of(result: BenchResult, base: BenchResult = BASE, limit: float = 0.03) -> Gate:
    return judge_regression(result, base, limit=limit, source="base.json")


def states(gate: Gate) -> dict[str, str]:
    return {each.name: each.state for each in gate.findings}


@pytest.mark.parametrize(("text", "limit"), [("slower:3%", 0.03), ("slower:0.5%", 0.005), ("slower:0%", 0.0)])
def test_limits(text, limit):
    assert parse_limit(text) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "3%", "slower:3", "slower:-3%", "faster:3%", "slower:x%", "slower:3%%"])
def test_what_is_no_limit_says_how_one_looks(text):
    with pytest.raises(InputError, match=r"slower:3%"):
        parse_limit(text)


def test_an_equal_run_passes_and_a_slower_one_fails():
    passed = gate_of(run_of(seed=2, first=1.0, second=2.0))
    assert states(passed) == {"first": "PASSED", "second": "PASSED"}
    passed.check()
    failed = gate_of(run_of(seed=2, first=1.0, second=2.1))
    assert states(failed) == {"first": "PASSED", "second": "FAILED"}
    with pytest.raises(GateError, match=r"base\.json by more than 3 %: second 1\.0\d\d times as long") as caught:
        failed.check()
    assert "first" not in str(caught.value)
    assert caught.value.exit_code == 1
    gate_of(run_of(seed=2, first=1.0, second=2.1), limit=0.1).check()
    gate_of(run_of(seed=2, first=1.0, second=1.5)).check()  # faster is no failure


def test_a_noisy_run_is_unsettled_and_passes():
    gate = gate_of(run_of(seed=5, noise=0.15, first=1.0, second=2.0))
    assert "UNSETTLED" in states(gate).values()
    assert "FAILED" not in states(gate).values()
    gate.check()


def test_against_the_baseline_of_the_same_run():
    assert states(judge_baseline(run_of(first=1.0, second=1.05, third=1.0), limit=0.03)) == {
        "second": "FAILED",
        "third": "PASSED",
    }
    with pytest.raises(InputError, match="baseline"):
        judge_baseline(run_of(first=1.0), limit=0.03)


def test_one_graph_is_not_slower_than_itself():
    result = run_of(first=1.0, second=1.05, third=1.05)
    first, second, third = result.arms
    same = replace(FACTS, graph="ab" * 32)
    arms = (replace(first, facts=same), replace(second, facts=same), third)
    assert states(judge_baseline(replace(result, arms=arms), limit=0.03)) == {"third": "FAILED"}
    judge_baseline(replace(result, arms=arms[:2]), limit=0.03).check()


OTHER = {
    "machine": "another board",
    "cpu": "another processor",
    "gpu": None,
    "cores_usable": 2,
    "memory_mib": 4000,
    "governor": "schedutil",
    "power_mode": "MAXN (id 2)",
    "clocks_pinned": False,
    "gpu_limits_mhz": (306, 1020),
}


@pytest.mark.parametrize("key", OTHER)
def test_another_device_or_other_clocks_are_refused_by_name(key):
    other = replace(BASE, environment=replace(MACHINE, **{key: OTHER[key]}))
    kind = "clocks" if key in ("governor", "power_mode", "clocks_pinned", "gpu_limits_mhz") else "device"
    named = "memory_gib" if key == "memory_mib" else key
    with pytest.raises(NotComparable, match=rf"base\.json: another {kind}: {named} ") as caught:
        gate_of(BASE, other)
    assert caught.value.exit_code == 2


def test_what_a_kernel_keeps_of_the_memory_makes_no_other_device():
    gate_of(BASE, replace(BASE, environment=replace(MACHINE, memory_mib=7611)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", "cuda"),
        ("batch", 8),
        ("threads", 1),
        ("input", "random"),
        ("h2d", True),
        ("d2h", True),
        ("cuda_graph", True),
    ],
)
def test_another_timing_profile_is_refused_by_its_first_difference(field, value):
    other = replace(BASE, profile=replace(BASE.profile, **{field: value}))
    with pytest.raises(NotComparable, match=rf"another timing profile: {field} {getattr(BASE.profile, field)} "):
        gate_of(BASE, other)


def test_mlperf_and_single_stream_hold_the_same():
    gate_of(BASE, replace(BASE, profile=replace(BASE.profile, name="mlperf")))


@pytest.mark.parametrize("change", [{"images": replace(IMAGES, sha256="cd" * 32)}, {"runtime_norm_fusions": "off"}])
def test_another_input_mode_of_a_model_is_refused(change):
    first, second = BASE.arms
    other = replace(BASE, arms=(first, replace(second, facts=replace(FACTS, **change))))
    with pytest.raises(NotComparable, match=f"another input mode of second: {next(iter(change))}"):
        gate_of(BASE, other)


def test_a_model_that_the_base_lacks_and_a_base_that_is_invalid_are_refused():
    with pytest.raises(NotComparable, match=r"no model 'third' in it; there is first, second"):
        gate_of(run_of(first=1.0, third=1.0))
    invalid = replace(BASE, validity=Validity(blocks=80, dirty_blocks=20, causes={"hot": 20}))
    with pytest.raises(NotComparable, match=r"it is invalid: 20 of 80"):
        gate_of(BASE, invalid)


def test_markdown_and_junit_of_every_outcome():
    result = run_of(seed=2, first=1.0, second=2.1)
    gate = gate_of(result)
    text = markdown(result, gate)
    assert text.startswith("### Latency: FAILED (slower than base.json by at most 3 %)")
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith(("| first", "| second"))] == [
        "PASSED",
        "FAILED",
    ]
    suite = ElementTree.fromstring(junit(result, gate))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    first, second = suite
    assert (first.get("name"), first.find("failure")) == ("first", None)
    assert float(first.get("time")) == pytest.approx(1e-3, rel=0.05)
    assert "times as long" in second.find("failure").get("message")


def test_an_invalid_run_says_so_and_judges_nothing():
    result = run_of(seed=2, throttled=14, first=1.0, second=2.1)
    assert not result.validity.valid
    gate = gate_of(result)
    text = markdown(result, gate)
    assert text.startswith("### Latency: INVALID")
    assert "14 of 80 blocks" in text
    suite = ElementTree.fromstring(junit(result, gate))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "2")
    assert all("14 of 80" in case.find("error").get("message") for case in suite)


def test_hostile_names_stay_within_their_cell_and_element():
    name = 'a|b\n<x>&"'
    result = run_of(**{name: 1.0, "second": 1.0})
    gate = gate_of(result, result)
    rows = [line for line in markdown(result, gate).splitlines() if line.startswith("| a")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 6
    assert "<x>" not in rows[0]
    assert ElementTree.fromstring(junit(result, gate))[0].get("name").replace("\n", " ") == name.replace("\n", " ")
