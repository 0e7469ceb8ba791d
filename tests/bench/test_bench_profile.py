from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest

from msn_deploy.bench.profile import (
    PRESETS,
    Profile,
    first_difference,
    in_words,
    preset,
    profile_from,
    seconds_for,
)
from msn_deploy.core.errors import InputError
from msn_deploy.machine.environment import Environment

# measures, streams, copies, cuda_graph, wait of an engine. Of trtexec, by InferenceOptions of NVIDIA/TensorRT's
# samples/common/sampleOptions.h: infStreams 1; skipTransfers, graph and spin false (10.16); includeTransfers false,
# graph and spin true (11.0).
MEANT = {
    "single-stream": ("latency", 1, True, False, "spin"),
    "mlperf": ("latency", 1, True, False, "spin"),
    "throughput": ("rate", 2, True, False, "spin"),
    "trtexec-10": ("rate", 1, True, False, "sleep"),
    "trtexec-11": ("rate", 1, False, True, "spin"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_a_query_contains(name):
    measures, streams, copies, graph, wait = MEANT[name]
    assert preset(name, provider="engine", input="random", batch=4, threads=2) == Profile(
        name=name, provider="engine", batch=4, threads=2, input="random", h2d=copies, d2h=copies, cuda_graph=graph,
        wait=wait, streams=streams, measures=measures,
    )  # fmt: skip
    assert preset(name, provider="engine", input="random", cuda_graph=True, streams=7).streams == 7


def test_there_is_nothing_to_copy_on_the_cpu():
    found = preset("single-stream", provider="cpu", input="random")
    assert (found.h2d, found.d2h) == (None, None)


def test_a_result_of_an_earlier_version_is_read_unless_it_was_measured_otherwise():
    ours = asdict(Profile(provider="engine", cuda_graph=True))
    was = {"spin_wait": False, "streams": 1, "sync": "query"}
    assert profile_from(ours | was) == Profile(provider="engine", cuda_graph=True)
    for name, other in (("spin_wait", True), ("sync", "end")):
        with pytest.raises(InputError, match=name):
            profile_from(ours | was | {name: other})


@pytest.mark.parametrize("name", PRESETS)
def test_engines_spin_unless_they_are_asked_to_sleep(name):
    assert preset(name, provider="engine", input="random").wait == ("sleep" if name == "trtexec-10" else "spin")
    assert preset(name, provider="cpu and engine-mapped", input="random", wait="sleep").wait == "sleep"
    assert preset(name, provider="cuda", input="random").wait is None  # ONNX Runtime's own choice
    with pytest.raises(InputError, match="spin, sleep; not 'yield'"):
        Profile(provider="engine", wait="yield")


def test_engines_that_waited_as_cuda_chose_compare_with_no_other():
    ours = preset("single-stream", provider="engine", input="random")
    was = profile_from({key: value for key, value in asdict(ours).items() if key != "wait"} | {"spin_wait": False})
    assert first_difference(ours, was) == "wait spin against None"
    assert first_difference(was, was) is None
    asleep = preset("single-stream", provider="engine", input="random", wait="sleep")
    assert first_difference(ours, asleep) == "wait spin against sleep"


def test_mapped_buffers_alone_have_no_copies_in_the_time():
    assert preset("single-stream", provider="engine-mapped", input="random").h2d is None
    assert preset("single-stream", provider="engine and engine-mapped", input="random").h2d is True


def test_conditions_are_said_with_power_mode_and_clocks():
    profile = preset("single-stream", provider="engine", input="random", threads=6, cuda_graph=True)
    jetson = Environment(power_mode="MAXN_SUPER (id 2)", clocks_pinned=False)
    assert in_words(profile, jetson) == (
        "engine, CUDA graph, wait: spin, batch 1, 6 threads, input: random, power mode MAXN_SUPER (id 2), "
        "clocks not pinned"
    )
    assert in_words(Profile(provider="cpu"), Environment()) == "cpu, batch 1, None threads, input: real samples"


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match=", ".join(PRESETS)):
        preset("fast", provider="cpu", input="random")


def test_mlperf_lasts_ten_minutes():
    assert seconds_for("mlperf", None) == 600
    assert seconds_for("mlperf", 700) == 700
    assert (seconds_for("single-stream", None), seconds_for("single-stream", 3)) == (10, 3)
    with pytest.raises(InputError, match="600 s, not 30"):
        seconds_for("mlperf", 30)


@pytest.mark.parametrize("change", [{"batch": 0}, {"threads": 0}, {"input": "zeros"}, {"streams": 0}, {"streams": 257}])
def test_values_that_cannot_be_used(change):
    with pytest.raises(InputError, match="in flight" if "streams" in change else next(iter(change))):
        Profile(provider="cpu", **change)


def test_every_condition_but_the_name_counts():
    ours = Profile(provider="cpu")
    changes = {
        "provider": "cuda", "batch": 2, "threads": 1, "input": "random", "h2d": True, "d2h": False,
        "cuda_graph": True, "wait": "spin", "streams": 2, "measures": "rate",
    }  # fmt: skip
    assert {field.name for field in fields(Profile)} == {*changes, "name"}
    for name, value in changes.items():
        assert first_difference(ours, replace(ours, **{name: value})).startswith(f"{name} ")
    assert first_difference(ours, replace(ours, name="mlperf")) is None
