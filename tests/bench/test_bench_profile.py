from __future__ import annotations

from dataclasses import fields, replace

import pytest

from msn_deploy.bench.profile import PRESETS, Profile, first_difference, preset, seconds_for
from msn_deploy.core.errors import InputError


def test_presets_say_what_a_query_contains():
    ten, eleven = (preset(f"trtexec-{n}", provider="engine", input="random") for n in (10, 11))
    assert (ten.h2d, ten.d2h, ten.cuda_graph, ten.spin_wait) == (True, True, False, False)
    assert (eleven.h2d, eleven.d2h, eleven.cuda_graph, eleven.spin_wait) == (False, False, True, True)
    assert preset("throughput", provider="engine", input="random").streams > 1
    assert preset("single-stream", provider="cuda", input="random", batch=4, threads=2) == Profile(
        provider="cuda", batch=4, threads=2, input="random", h2d=True, d2h=True
    )


def test_there_is_nothing_to_copy_on_the_cpu():
    found = preset("single-stream", provider="cpu", input="random")
    assert (found.h2d, found.d2h, found.sync) == (None, None, "query")


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize("name", ["throughput", "trtexec-10", "trtexec-11"])
def test_onnx_runtime_refuses_what_it_cannot_keep_and_says_why(name, provider):
    with pytest.raises(InputError, match=rf"(?s)profile {name} .*ONNX Runtime.*provider {provider}.*single-stream"):
        preset(name, provider=provider, input="random")


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match=", ".join(PRESETS)):
        preset("fast", provider="cpu", input="random")


def test_mlperf_lasts_ten_minutes():
    assert seconds_for("mlperf", None) == 600
    assert seconds_for("mlperf", 700) == 700
    assert (seconds_for("single-stream", None), seconds_for("single-stream", 3)) == (10, 3)
    with pytest.raises(InputError, match="600 s, not 30"):
        seconds_for("mlperf", 30)


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"streams": 0}, {"threads": 0}, {"input": "zeros"}, {"sync": "never"}]
)
def test_values_that_cannot_be_used(change):
    with pytest.raises(InputError, match=next(iter(change))):
        Profile(provider="cpu", **change)


def test_every_condition_but_the_name_counts():
    ours = Profile(provider="cpu")
    changes = {
        "provider": "cuda", "batch": 2, "threads": 1, "input": "random", "h2d": True, "d2h": False,
        "cuda_graph": True, "spin_wait": True, "streams": 2, "sync": "end",
    }  # fmt: skip
    assert {field.name for field in fields(Profile)} == {*changes, "name"}
    for name, value in changes.items():
        assert first_difference(ours, replace(ours, **{name: value})).startswith(f"{name} ")
    assert first_difference(ours, replace(ours, name="mlperf")) is None
