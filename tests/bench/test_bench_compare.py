from __future__ import annotations

import json
import re
import time
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_results import realistic

from msn_deploy.bench import ArmResult, BenchResult, MeasureOptions, Profile, Samples, compare, from_json, to_json
from msn_deploy.bench.compare import ratio_between
from msn_deploy.bench.measure import ArmFacts, ArmSamples
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.machine.environment import Environment

LEVELS_MS = {"BN unfolded": 1.3, "BN folded": 1.0, "MSN folded": 1.0}


def samples_of(levels_ms=LEVELS_MS, *, rounds: int = 12, queries: int = 40, noise: float = 0.01) -> Samples:
    random = np.random.default_rng(11)
    arms = []
    for name, level_ms in levels_ms.items():
        raw = (1e6 * level_ms * random.lognormal(0, noise, (2 * rounds, queries))).astype(int).tolist()
        starts = tuple(int(1e8 * at) for at in range(2 * rounds))
        slots = tuple(len(levels_ms) * at + len(arms) for at in range(2 * rounds))
        facts = ArmFacts(file=f"{name}.onnx", sha256="ab" * 32, folded="un" not in name)
        blocks = tuple(array("q", block) for block in raw)
        arms.append(ArmSamples(name=name, facts=facts, blocks=blocks, block_starts_ns=starts, slots=slots))
    return Samples(arms=tuple(arms), options=MeasureOptions(seconds=2.5))


def result_of(samples: Samples | None = None, baseline: str = "BN unfolded") -> BenchResult:
    return compare(
        samples or samples_of(),
        baseline=baseline,
        environment=Environment(cpu="a processor", versions={"numpy": "2"}),
        profile=Profile(provider="cpu", threads=2),
    )


def test_three_rows_against_the_baseline():
    unfolded, folded, msn = result_of().arms
    assert [arm.verdict for arm in (unfolded, folded, msn)] == ["SAME", "FASTER", "FASTER"]
    assert (unfolded.ratio, unfolded.ratio_interval) == (1.0, (1.0, 1.0))
    assert folded.ratio == pytest.approx(1 / 1.3, rel=0.01)
    assert folded.ratio_interval[0] <= folded.ratio <= folded.ratio_interval[1]
    assert ratio_between(msn, folded).verdict == "SAME"


def test_numbers_are_those_of_the_raw_samples():
    samples = samples_of()
    arm = result_of(samples).arms[1]
    raw_ms = np.array(samples.arms[1].blocks).ravel() / 1e6
    assert arm.median_ms == pytest.approx(np.median(raw_ms))
    assert np.percentile(raw_ms, 90) < arm.p90_ms < np.percentile(raw_ms, 94)
    assert np.percentile(raw_ms, 99) < arm.p99_ms <= raw_ms.max()
    assert arm.median_ms < arm.median_bound_ms < arm.p90_ms < arm.p95_ms < arm.p99_ms
    assert (arm.queries, arm.blocks) == (960, 24)
    assert arm.samples_ns == samples.arms[1].blocks
    assert arm.block_start_ms[:3] == (0.0, 100.0, 200.0)


def test_tails_of_few_queries_are_none():
    arm = result_of(samples_of(queries=1)).arms[0]
    assert (arm.queries, arm.p90_ms, arm.p99_ms) == (24, None, None)
    arm = result_of(samples_of(queries=8)).arms[0]
    assert arm.p90_ms is not None
    assert arm.p99_ms is None


def test_unknown_baseline_lists_what_there_is():
    with pytest.raises(InputError, match=r"'bm'.*BN unfolded, BN folded, MSN folded"):
        result_of(baseline="bm")


def test_a_clock_too_coarse_is_an_invalid_measurement():
    with pytest.raises(InvalidMeasurement):
        result_of(samples_of({"BN unfolded": 1.0, "tiny": 0.0}))


@pytest.mark.parametrize("queries", [1, 40])
def test_json_round_trip(queries):
    result = result_of(samples_of(queries=queries))
    assert from_json(to_json(result)) == result
    assert to_json(from_json(to_json(result))) == to_json(result)


def test_json_of_an_arm_begins_with_the_promised_keys():
    value = json.loads(to_json(result_of()))
    assert value["schema"] == "msn-deploy-bench/4"
    promised = ["name", "median_ms", "p90_ms", "p99_ms", "ratio", "ratio_interval", "verdict", "queries", "blocks"]
    for arm in value["arms"]:
        assert list(arm)[: len(promised)] == promised
    assert value["profile"] == {
        "provider": "cpu",
        "name": "single-stream",
        "batch": 1,
        "threads": 2,
        "input": "real samples",
        "h2d": None,
        "d2h": None,
        "cuda_graph": False,
        "wait": None,
        "streams": 1,
        "measures": "latency",
    }
    assert value["options"]["seconds"] == 2.5


def test_json_holds_one_block_of_whole_nanoseconds_per_line():
    result = result_of()
    lines = [line.strip().rstrip(",") for line in to_json(result).splitlines()]
    first = json.dumps(result.arms[0].samples_ns[0].tolist(), separators=(",", ":"))
    assert first in lines
    assert len(lines) < 500


def test_hostile_names_and_facts_survive_json():
    name = 'x",\n "samples_ns": [} \u2028 <b>'
    samples = samples_of({name: 1.0})
    samples = replace(
        samples, arms=(replace(samples.arms[0], facts=ArmFacts(file=name, others={"nested": {"]": [1, None]}})),)
    )
    result = result_of(samples, baseline=name)
    assert from_json(to_json(result)) == result


def test_numpy_numbers_and_paths_in_facts_become_json_values():
    samples = samples_of({"a": 1.0})
    facts = ArmFacts(accuracy=np.float32(0.5), bytes=np.int64(12), others={"folder": Path("a/b")})
    result = result_of(replace(samples, arms=(replace(samples.arms[0], facts=facts),)), baseline="a")
    assert from_json(to_json(result)).arms[0].facts == ArmFacts(accuracy=0.5, bytes=12, others={"folder": "a/b"})


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (object(), TypeError)])
def test_facts_that_are_not_json_are_refused_when_writing(value, error):
    samples = samples_of({"a": 1.0})
    result = result_of(replace(samples, arms=(replace(samples.arms[0], facts=ArmFacts(accuracy=value)),)), baseline="a")
    with pytest.raises(error):
        to_json(result)


def damaged(change) -> str:
    value = json.loads(to_json(result_of()))
    change(value)
    return json.dumps(value)


def test_a_result_of_the_schema_before_layers_is_read():
    result = result_of()

    def older(value):
        value["schema"] = "msn-deploy-bench/2"
        for arm in value["arms"]:
            del arm["layers"]

    assert from_json(damaged(older)) == result
    assert all(arm.layers is None for arm in result.arms)


def test_layers_make_the_round_trip():
    result = realistic()
    assert result.arms[0].layers.layers[1].fused_from == ("node_conv2d_1", "node_relu_1")
    assert [arm.layers for arm in from_json(to_json(result)).arms] == [arm.layers for arm in result.arms]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: p.pop("runs"), "missing key 'runs'"),
        (lambda p: p["layers"][0].update(us=-1), "a layer holds something that is not an amount"),
        (lambda p: p["layers"][0].update(share="0.5"), "a layer: share must be a number, got '0.5'"),
        (lambda p: p["layers"][0].update(name=7), "a layer: name must be text, got 7"),
        (lambda p: p["layers"][0].update(fused_from=[None]), r"a layer: fused_from\[0\] must be text, got None"),
        (lambda p: p["layers"][0].update(surprise=1), "surprise"),
        (
            lambda p: p["cost"].update(weight_bytes=0, activation_bytes=0),
            "the cost holds something that is not an amount",
        ),
        (lambda p: p["cost"].update(flops=None), "the cost: flops must be a whole number, got None"),
        (lambda p: p["limits"].update(bandwidth_gb_s=0), "the limits holds something that is not an amount"),
        (lambda p: p["limits"].update(device=[]), r"the limits: device must be text, got \[\]"),
        (lambda p: p.update(source=None), "a layer profile: source must be text, got None"),
        (lambda p: p.update(layers=3), "int"),
    ],
)
def test_damaged_layers_are_refused(change, problem):
    value = json.loads(to_json(realistic()))
    change(value["arms"][0]["layers"])
    with pytest.raises(InputError, match=problem):
        from_json(json.dumps(value), source="x.json")


def keep_blocks(arm: dict, count: int) -> None:
    for key in ("samples_ns", "block_start_ms", "block_causes"):
        arm[key] = arm[key][:count]
    arm.update(blocks=count, queries=40 * count)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: v.update(schema="msn-deploy-bench/1"), "(?s)schema 'msn-deploy-bench/1'.*Measure again"),
        (lambda v: v.pop("schema"), "'schema' is missing"),
        (lambda v: v.pop("arms"), "'arms' is missing"),
        (lambda v: v.pop("profile"), "'profile' is missing"),
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v.update(baseline="other"), "'other' is not among"),
        (lambda v: v.update(environment=[]), "environment"),
        (lambda v: v["environment"].update(memory_mib="much"), "memory_mib"),
        (lambda v: v["environment"].update(load_average=[0.1, None]), "load_average"),
        (lambda v: v["profile"].update(batch=0), "batch"),
        (lambda v: v["profile"].update(input="zeros"), "zeros"),
        (lambda v: v["arms"][1].pop("median_ms"), "median_ms"),
        (lambda v: v["arms"][1].update(median_ms="1.0"), "'BN folded': median_ms must be a number, got '1.0'"),
        (lambda v: v["arms"][1].update(ratio=float("nan")), "nan is not a number"),
        (lambda v: v["arms"][1].update(ratio_interval=[1.0]), r"missing key 'ratio_interval\[1\]'"),
        (lambda v: v["arms"][1].update(verdict="FASTEST"), "FASTEST"),
        (lambda v: v["arms"][1].update(queries=3), "promises 3 queries"),
        (lambda v: v["arms"][1].update(facts=None), "facts must be a section"),
        (lambda v: v["arms"][1]["facts"].update(bytes="many"), "facts: bytes must be a whole number, got 'many'"),
        (lambda v: v["arms"][1]["facts"].update(images={"role": "data"}), r"facts \[images\]: missing key 'file'"),
        (lambda v: v["arms"][1].update(energy={"mj": 1.0}), "interval_mj"),
        (lambda v: keep_blocks(v["arms"][1], 22), "unequal numbers of blocks"),
        (lambda v: [keep_blocks(arm, 23) for arm in v["arms"]], "two blocks per round and build.*has 23"),
        (lambda v: [keep_blocks(arm, 0) for arm in v["arms"]], "two blocks per round and build.*has 0"),
        (lambda v: v["arms"][1]["samples_ns"].pop(), "'BN folded' needs two blocks"),
        (lambda v: v["arms"][1]["samples_ns"][0].clear(), "none of them empty"),
        (lambda v: v["arms"][1]["samples_ns"][0].pop(), "'BN folded' promises"),
        (lambda v: v["arms"][1]["samples_ns"][0].__setitem__(0, 1.5), "whole number of nanoseconds"),
        (lambda v: v["arms"][1]["samples_ns"][0].__setitem__(0, -1), "whole number of nanoseconds"),
        (lambda v: v["arms"][1]["samples_ns"].__setitem__(0, "12345678"), "whole number of nanoseconds"),
        (lambda v: v["arms"][1]["samples_ns"][0].__setitem__(0, 2**70), "is too large"),
        (lambda v: v["validity"].update(dirty_blocks=3), "validity counts other blocks"),
        (lambda v: v.pop("validity"), "'validity' is missing"),
        (lambda v: v["arms"][1].update(block_causes=["hot"] * 24), "no block that counts"),
        (lambda v: v["arms"][1].update(builds=5), "two blocks per round and build"),
        (lambda v: v["arms"][1].update(p_value="0"), "p_value must be a number, got '0'"),
        (lambda v: v["arms"][1].update(builds=True), "builds must be a whole number, got True"),
        (lambda v: v["arms"][1].update(name=["a"]), "name must be text"),
        (lambda v: v["arms"][1].update(median_ms=0.0), "a time or a ratio that is not between"),
        (lambda v: v["arms"][1].update(ratio=1e300), "a time or a ratio that is not between"),
        (lambda v: v["arms"][1].update(p99_ms=-1.0), "a time or a ratio that is not between"),
        (lambda v: v["arms"][1].update(block_causes=3), "block_causes must be a list, got 3"),
        (lambda v: v["arms"][1].update(block_start_ms=["0"]), r"block_start_ms\[0\] must be a number"),
        (lambda v: v["environment"].update(memory_mib=True), "memory_mib must be a whole number, got True"),
        (lambda v: v["environment"].update(versions=[]), "versions must be a section"),
        (lambda v: v["profile"].update(batch="1"), "batch must be a whole number, got '1'"),
        (lambda v: v.update(validity=3), "bench.json is not a benchmark result"),
        (lambda v: v["validity"].update(causes={"hot": "1"}), "must be a whole number, got '1'"),
        (lambda v: v.update(control={"ratio": 1}), "control: missing key"),
        (lambda v: v.update(options=[]), "options must be a section"),
        (lambda v: v.update(arms={}), "bench.json is not a benchmark result"),
        (lambda v: v.update(arms=[3]), "bench.json is not a benchmark result"),
    ],
)
def test_damaged_json_is_an_input_error_that_names_the_problem(change, problem):
    with pytest.raises(InputError, match=problem) as caught:
        from_json(damaged(change), source="bench.json")
    assert str(caught.value).startswith("bench.json ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "{}", '{"schema": null}'])
def test_what_is_not_a_result_is_an_input_error(text):
    with pytest.raises(InputError, match=r"bench\.json"):
        from_json(text, source="bench.json")


@pytest.mark.parametrize("missing", ["samples_ns", "block_start_ms", "block_causes", "verdict", "name"])
def test_missing_keys_of_an_arm_are_named(missing):
    with pytest.raises(InputError, match=missing):
        from_json(damaged(lambda v: v["arms"][2].pop(missing)))


def test_results_are_frozen():
    arm = result_of().arms[0]
    assert isinstance(arm, ArmResult)
    with pytest.raises(AttributeError):
        arm.verdict = "FASTER"


def test_builds_are_one_row_and_widen_its_interval():
    """Two builds of each model; those of the second differ by 8 %, which one build alone would hide."""
    first, second = samples_of({"one": 1.0, "other": 1.0}), samples_of({"one": 1.0, "other": 1.08})
    again = [replace(arm, build=1, slots=tuple(48 + slot for slot in arm.slots)) for arm in second.arms]
    single = result_of(second, baseline="one").arms[1]
    arm = result_of(replace(first, arms=(*first.arms, *again)), baseline="one").arms[1]
    assert (arm.builds, arm.blocks, len(arm.samples_ns)) == (2, 48, 48)
    assert arm.ratio == pytest.approx(1.04, rel=0.01)
    assert single.verdict == "SLOWER"
    assert arm.verdict == "AMBIGUOUS"
    width, width_of_one = (each.ratio_interval[1] - each.ratio_interval[0] for each in (arm, single))
    assert width > 5 * width_of_one
    result = result_of(replace(first, arms=(*first.arms, *again)), baseline="one")
    assert from_json(to_json(result)) == result


def test_the_baseline_against_itself_is_the_control():
    assert result_of().control.verdict == "SAME"
    assert result_of(samples_of(rounds=7)).control is None
    samples = samples_of({"a": 1.0})
    (arm,) = samples.arms
    # Every first and fourth block is slower: nothing that two equal arms would show, and the control sees it.
    odd = tuple(array("q", [int(ns * (1.2 if at % 4 in (0, 3) else 1)) for ns in b]) for at, b in enumerate(arm.blocks))
    assert result_of(replace(samples, arms=(replace(arm, blocks=odd),)), baseline="a").control.verdict == "SLOWER"


def test_many_samples_are_analysed_in_seconds():
    """Three models, 30 s each, 20 us per query: 4.5 million samples."""
    random = np.random.default_rng(1)
    arms = []
    for at, name in enumerate("abc"):
        raw = random.lognormal(10, 0.02, (1200, 1250)).astype(np.int64)
        blocks = tuple(array("q", block.tobytes()) for block in raw)
        slots = tuple(range(at, 3600, 3))
        arms.append(ArmSamples(name=name, facts=ArmFacts(), blocks=blocks, block_starts_ns=slots, slots=slots))
    samples = Samples(arms=tuple(arms), options=MeasureOptions())
    start = time.process_time()
    result = result_of(samples, baseline="a")
    assert time.process_time() - start < 5
    assert sum(arm.queries for arm in result.arms) == 4_500_000


RESULTS = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "benchmarks" / "results").rglob("*.json")
    if '"schema": "msn-deploy-bench/' in path.read_text(encoding="utf-8")[:200]
)


@pytest.mark.skipif(not RESULTS, reason="needs the source tree")
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_committed_result_is_read_and_its_arms_are_written_as_they_were(path):
    text = path.read_text(encoding="utf-8")
    result = from_json(text)
    assert to_json(result).partition('"arms"')[2] == text.partition('"arms"')[2]
    assert not any(arm.facts.others for arm in result.arms)
    older = from_json(re.sub(r"msn-deploy-bench/\d", "msn-deploy-bench/2", text).replace('"layers": null,', ""))
    assert older.arms == result.arms
