"""Rates of models under load, beside one query at a time, from devices of known service times."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from test_bench_load import MS, Server

from msn_deploy.bench import Arm, MeasureOptions, Profile, compare, from_json, measure, to_json
from msn_deploy.bench.gate import judge_regression
from msn_deploy.bench.load import QueuedLoad
from msn_deploy.bench.measure import ArmFacts
from msn_deploy.bench.profile import preset
from msn_deploy.bench.throughput import ALONE, under_load, with_throughput
from msn_deploy.core.errors import InputError, NotComparable
from msn_deploy.engine.layer_times import Stages
from msn_deploy.machine.environment import Environment
from msn_deploy.machine.usage import Usage

SHORT = MeasureOptions(seconds=2.0, block_ms=40.0, warmup_seconds=0.1, warmup_queries=5)
CONDITIONS = preset("throughput", provider="cpu", input="random", batch=8, threads=1, streams=4)


def measured(server, lanes=4, *, batch=8, name="net", conditions=CONDITIONS, others=()):
    """A model under load, and beside it alone, on one device."""

    def alone() -> None:
        lane = server.lane()
        lane.submit()
        lane.collect()

    facts = ArmFacts(threads=2)
    load = QueuedLoad([server.lane() for _ in range(lanes)])
    arms = [
        Arm(name=name, run=alone, load=load, facts=ArmFacts(in_flight=lanes)),
        Arm(name=name + ALONE, run=alone, facts=facts),
        *others,
    ]
    taken = measure(arms, options=SHORT, clock=server.clock)
    result = compare(under_load(taken), baseline=name, environment=Environment(), profile=conditions)
    return with_throughput(result, taken, batch=batch)


@pytest.mark.parametrize(("at_once", "per_s", "gain", "latency"), [(1, 1000, 1, 32), (2, 2000, 2, 16), (4, 4000, 4, 8)])
def test_a_known_device_gives_its_rate_and_the_gain_over_one_at_a_time(at_once, per_s, gain, latency):
    (arm,) = measured(Server(8 * MS, at_once=at_once)).arms
    found = arm.throughput
    assert found.in_flight == 4
    assert found.rate.per_s == pytest.approx(per_s)
    assert found.rate.interval == pytest.approx((per_s, per_s))
    assert found.alone.rate.per_s == pytest.approx(1000)
    assert (found.alone.median_ms, found.alone.threads) == (8.0, 2)
    assert (found.alone.gain, *found.alone.gain_interval) == pytest.approx((gain, gain, gain))
    assert (arm.median_ms, arm.p95_ms) == (latency, latency)
    assert arm.medians_by_build().ravel() == pytest.approx(8e9 / per_s)


def test_the_interval_is_as_wide_as_the_device_is_unsteady():
    server = Server(8 * MS)

    def unsteady() -> int:
        server.ns = 8 * MS + server.now // (200 * MS) % 3 * MS
        return server.now

    calm = measured(Server(8 * MS)).arms[0].throughput.rate
    server.clock = unsteady
    wild = measured(server).arms[0].throughput.rate
    assert wild.interval[0] < wild.per_s < wild.interval[1]
    assert wild.interval[1] - wild.interval[0] > 20 * (calm.interval[1] - calm.interval[0])


def test_a_result_is_written_and_read_back():
    result = measured(Server(8 * MS, at_once=2))
    (arm,) = result.arms
    throughput = replace(
        arm.throughput,
        usage=Usage(cores=1.9, host_mib=120.0),
        stages=Stages(copy_in_ms=0.1, compute_ms=1.5, copy_out_ms=0.01, runs=50),
    )
    result = replace(result, arms=(replace(arm, throughput=throughput),))
    text = to_json(result)
    assert from_json(text) == result
    value = json.loads(text)
    assert value["profile"]["streams"] == 4
    assert value["arms"][0]["throughput"]["rate"]["per_s"] == pytest.approx(2000)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda arm: arm.update(ns_per_query=arm["ns_per_query"][1:]), "time per query"),
        (lambda arm: arm["ns_per_query"].__setitem__(0, -1.0), "time per query"),
        (lambda arm: arm["throughput"].update(in_flight=0), "rate above 0"),
        (lambda arm: arm["throughput"]["rate"].update(per_s=0.0), "rate above 0"),
        (lambda arm: arm["throughput"]["alone"].update(gain="much"), "gain"),
    ],
)
def test_what_is_read_is_not_taken_on_trust(spoil, said):
    value = json.loads(to_json(measured(Server(8 * MS))))
    spoil(value["arms"][0])
    with pytest.raises(InputError, match=said):
        from_json(json.dumps(value))


def test_a_gate_compares_rates_and_refuses_unlike_loads():
    base = measured(Server(8 * MS, at_once=2))
    slower = measured(Server(10 * MS, at_once=2))
    (finding,) = judge_regression(slower, base, limit=0.03, source="base.json").findings
    assert finding.state == "FAILED"
    assert finding.ratio.ratio == pytest.approx(1.25)
    for other in (
        replace(CONDITIONS, streams=2),
        Profile(**{**asdict(CONDITIONS), "measures": "latency"}),
        preset("single-stream", provider="cpu", input="random", batch=8, threads=1),
    ):
        with pytest.raises(NotComparable, match=r"streams|measures"):
            judge_regression(slower, replace(base, profile=other), limit=0.03, source="base.json")
