"""Several contexts and streams of one engine, on a stand-in GPU where each stream is a list of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy_trt import Gpu, logits, module
from test_engine_trt import DYNAMIC, PLAN, RANGE, images

from msn_deploy.engine.layer_times import time_stages
from msn_deploy.engine.trt import TrtRunner
from msn_deploy.pipeline.bench_load import load_of


def load(gpu, plan=PLAN, *, cuda_graph=False, **engine):
    trt = module(gpu, **engine)
    loaded = []
    deserialize = trt.Runtime.deserialize_cuda_engine

    def counted(self, data):
        loaded.append(data)
        return deserialize(self, data)

    trt.Runtime.deserialize_cuda_engine = counted
    return TrtRunner(plan, cuda_graph=cuda_graph, trt=trt, cuda=gpu), loaded


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_queries_in_flight_on_two_streams_do_not_mix(cuda_graph):
    gpu = Gpu()
    first, loaded = load(gpu, cuda_graph=cuda_graph)
    second = first.another()
    assert len(loaded) == 1, "one engine, two contexts"
    assert len(gpu.streams) == 2
    given = [images(4, seed) for seed in range(4)]
    for one, other in (given[:2], given[2:]):
        first.submit({"x": one})
        second.submit({"x": other})
        assert np.allclose(second.collect()["logits"], logits(other), atol=1e-4)
        assert np.allclose(first.collect()["logits"], logits(one), atol=1e-4)
    first.close()
    assert np.allclose(second.run({"x": given[0]})["logits"], logits(given[0]), atol=1e-4), "it keeps the engine"
    second.close()
    assert gpu.log.index("engine") > max(at for at, name in enumerate(gpu.log) if name == "context")


@pytest.mark.parametrize(("version", "times"), [("8.6.2", 2), ("10.3.0.30", 1)])
def test_before_tensorrt_10_contexts_cannot_share_a_profile(version, times):
    gpu = Gpu()
    plan = replace(PLAN, backend_version=version)
    first, loaded = load(gpu, plan, shape=DYNAMIC, profile=RANGE, version=version)
    second = first.another()
    assert len(loaded) == times
    assert np.allclose(second.run({"x": images(3)})["logits"], logits(images(3)), atol=1e-4)


def test_a_load_on_an_engine_answers_from_each_of_its_streams():
    gpu = Gpu()
    runner, _ = load(gpu)
    feeds = [{"x": images(4, seed)} for seed in range(3)]
    kept = load_of(runner, feeds, streams=3, copies=True, root=Path("/nowhere"))
    block = kept.block(12, 1)
    assert len(block.samples) == 12
    assert len(gpu.streams) == 3
    assert not any(each.queued for each in gpu.streams.values()), "nothing is left in flight"
    assert block.usage.device_mib == 3072


def test_without_copies_nothing_is_copied():
    gpu = Gpu()
    runner, _ = load(gpu, cuda_graph=True)
    kept = load_of(runner, [{"x": images(4)}], streams=2, copies=False, root=Path("/nowhere"))
    copies = []
    for each in gpu.streams.values():
        each.copy = lambda *args, **options: copies.append(args)
    launches = sum(each.launches for each in gpu.streams.values())
    kept.block(10, 1)
    assert copies == []
    assert sum(each.launches for each in gpu.streams.values()) >= launches + 12


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_stages_are_copy_in_network_and_copy_out(cuda_graph):
    gpu = Gpu()
    runner, _ = load(gpu, cuda_graph=cuda_graph)
    stages = []

    def timed(work):
        before = len(gpu.queued)
        work()
        stages.append(len(gpu.queued) - before)

    gpu.timed = timed
    waits = iter([0.25, 1.5, 0.125] * 100)
    wait = gpu.wait

    def taken():
        wait()
        return next(waits)

    gpu.wait = taken
    found = time_stages(runner, [{"x": images(4)}], runs=7)
    assert (found.copy_in_ms, found.compute_ms, found.copy_out_ms, found.runs) == (0.25, 1.5, 0.125, 7)
    assert found.sum_ms == 1.875
    assert stages == [1, 1, 1] * 12
    assert np.allclose(runner.run({"x": images(4, 9)})["logits"], logits(images(4, 9)), atol=1e-4)
