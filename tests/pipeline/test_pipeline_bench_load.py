"""`bench --profile throughput`: several queries in flight of files, beside one at a time, and what that refuses."""

from pathlib import Path

import numpy as np
import pytest

from msn_deploy.bench import MeasureOptions, from_json, to_json
from msn_deploy.bench.gate import judge_regression
from msn_deploy.core.errors import InputError, NotComparable
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.bench_load import load_of, threads_under_load
from msn_deploy.pipeline.bench_request import BenchRequest
from msn_deploy.pipeline.export import export_onnx

QUICK = MeasureOptions(seconds=1.5, block_ms=5, warmup_seconds=0, warmup_queries=2)


@pytest.fixture(scope="module")
def onnx(checkpoint):
    path = checkpoint.with_name("loaded.onnx")
    export_onnx(str(checkpoint), path, dynamic_batch=True)
    return path


@pytest.mark.slow
def test_a_file_under_load_beside_itself_alone(onnx):
    result = bench([onnx], batch=4, profile="throughput", streams=3, options=QUICK)
    (arm,) = result.arms
    found = arm.throughput
    assert (result.profile.streams, result.profile.measures, result.profile.threads) == (3, "rate", 1)
    assert (found.in_flight, arm.facts.in_flight) == (3, 3)
    assert found.rate.interval[0] <= found.rate.per_s <= found.rate.interval[1]
    # By Little's law, and more where the lanes of a block are unlike.
    in_flight = [np.mean(block) / ns for block, ns in zip(arm.samples_ns, arm.ns_per_query, strict=True)]
    assert min(in_flight) > 2.999
    assert np.median(in_flight) < 4
    assert found.alone.gain == pytest.approx(found.rate.per_s / found.alone.rate.per_s, rel=0.6)
    assert 0 < found.usage.cores < 64
    assert found.usage.host_mib > 50
    assert from_json(to_json(result)) == result
    with pytest.raises(NotComparable, match="streams 2 against 3"):
        judge_regression(
            bench([onnx], batch=4, profile="throughput", options=QUICK, threads=1), result, limit=0.03, source="base"
        )


@pytest.mark.slow
def test_one_in_flight_is_alone(onnx):
    (arm,) = bench([onnx], profile="throughput", streams=1, options=QUICK).arms
    assert (arm.throughput.in_flight, arm.throughput.alone) == (1, None)


@pytest.mark.slow
def test_a_checkpoint_runs_one_query_at_a_time(checkpoint):
    with pytest.raises(InputError, match="one query at a time"):
        bench([checkpoint], profile="throughput", options=QUICK)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("msn_deploy.pipeline.bench_load.usable_cores", lambda: set(range(6)))
    assert [threads_under_load(None, streams) for streams in (1, 2, 4, 8)] == [6, 3, 1, 1]
    assert threads_under_load(5, 4) == 5


class Other:
    name = "net.pt"


def test_what_is_neither_file_nor_engine_is_refused():
    with pytest.raises(InputError, match=r"net\.pt is measured one query at a time"):
        load_of(Other(), [{}], streams=2, copies=True, root=Path("/"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"streams": 2}, "--streams .*--profile throughput"),
        ({"soak_s": 60.0}, "--soak .*--profile throughput"),
        ({"profile": "throughput", "layers": True}, "--layers"),
        ({"profile": "throughput", "state": {"a": "b"}}, "--state"),
        ({"profile": "throughput", "compiled": True}, "--compile"),
        ({"profile": "trtexec-10"}, r"net\.onnx is not one"),
        ({"profile": "trtexec-11"}, r"net\.onnx is not one"),
        ({"profile": "fast"}, "throughput, trtexec-10, trtexec-11"),
    ],
)
def test_what_does_not_go_with_a_profile(options, said):
    with pytest.raises(InputError, match=f"(?s){said}"):
        BenchRequest(models=[Path("net.onnx")], **options)
