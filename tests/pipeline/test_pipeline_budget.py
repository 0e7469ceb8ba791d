"""The budget of a metric: a network built to be hard for INT8 keeps its accuracy with one layer left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.graph.export import to_onnx
from msn_deploy.model.graphs import activations
from msn_deploy.pipeline import budget
from msn_deploy.pipeline.budget import (
    Allowed,
    drop_interval,
    drop_of,
    paired_drop,
    parse_drop,
    parse_sqnr,
    within_budget,
    within_sqnr,
)
from msn_deploy.quant.placement import place
from msn_deploy.tasks.task import Score

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> dict[str, Any]:
    """A cnn3 that knows its digits, as a graph, with test images, their labels, and the ranges of everything."""
    from msn_deploy.data import load_split, to_input
    from msn_deploy.msn import fold
    from msn_deploy.training import load_checkpoint, train

    recipe = small_recipe("cnn3", "msn", width=4, epochs=4)
    model, info = load_checkpoint(train(recipe, out=tmp_path_factory.mktemp("easy"), device="cpu").checkpoint)
    graph = to_onnx(fold(model), input_shape=recipe.input_shape, dynamic_batch=True)
    split = load_split("digits", "test", **info.preprocess.image_size)
    return _with_maxima(graph, to_input(split.images, info.preprocess), split.labels)


def _with_maxima(graph: ModelProto, images: Any, labels: Any) -> dict[str, Any]:
    wide = ModelProto()
    wide.CopyFrom(graph)
    names = [name for name in activations(graph) if name not in ("input", "logits")]
    wide.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(["logits", *names], {"input": images})
    maxima = {name: float(np.abs(value).max()) for name, value in zip(["logits", *names], values, strict=True)}
    maxima["input"] = float(np.abs(images).max())
    runs = [{"input": images[at : at + 32]} for at in range(0, len(images), 32)]
    return {"model": graph, "maxima": maxima, "ranges": maxima, "runs": runs, "judge": partial(_accuracy, labels)}


def _accuracy(labels: Any, made: Iterable[dict[str, Any]]) -> Score:
    right = (np.concatenate([outputs["logits"] for outputs in made]).argmax(1) == labels).astype(float)
    return Score(metric="accuracy", value=float(right.mean()), samples=len(right), each=right)


def _outlier(easy: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same function: a channel behind the first convolution times `factor`, which the second takes back."""
    hard = ModelProto()
    hard.CopyFrom(easy["model"])
    first, second = [node for node in hard.graph.node if node.op_type == "Conv"][:2]
    tensors = {tensor.name: tensor for tensor in hard.graph.initializer}
    for name, where, scale in (
        (first.input[1], np.s_[2], factor),
        (first.input[2], np.s_[2], factor),
        (second.input[1], np.s_[:, 2], 1 / factor),
    ):
        value = numpy_helper.to_array(tensors[name]).copy()
        value[where] *= np.float32(scale)
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    images = np.concatenate([feeds["input"] for feeds in easy["runs"]])
    return _with_maxima(hard, images, easy["judge"].args[0])


def test_what_int8_does_not_harm_stays_int8_as_a_whole(easy: dict[str, Any]) -> None:
    graph, verdict = within_budget(**easy, max_drop=Allowed(1, "pp"))
    assert (verdict.kind, verdict.left_out, verdict.ranking) == ("INT8", (), ())
    assert verdict.samples == 364
    assert verdict.metric.fp32 > 0.9
    assert verdict.metric.drop == pytest.approx(verdict.metric.fp32 - verdict.metric.int8)
    assert verdict.metric.interval[0] < verdict.metric.drop < verdict.metric.interval[1]
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == 4


def test_an_outlier_channel_breaks_int8_and_one_layer_left_out_mends_it(easy: dict[str, Any]) -> None:
    hard = _outlier(easy, 1000.0)
    convs = [node.name for node in hard["model"].graph.node if node.op_type == "Conv"]
    seen: list[str] = []
    graph, verdict = within_budget(
        **hard, max_drop=Allowed(0.5, "pp"), progress=lambda done, total, note="": seen.append(note)
    )
    assert verdict.kind == "MIXED"
    assert verdict.left_out == (convs[1],)
    assert verdict.metric.drop <= 0.005
    assert [each.sqnr_db for each in verdict.ranking] == sorted(each.sqnr_db for each in verdict.ranking)
    assert verdict.ranking[0].layer == convs[1]
    assert verdict.ranking[0].sqnr_db + 10 < verdict.ranking[1].sqnr_db
    assert {"measuring FP32", "measuring INT8", "ranking layers", "measuring INT8, 1 layers left out"} <= set(seen)
    layer = next(node for node in graph.graph.node if node.name == convs[1])
    assert layer.input[0].endswith("_fp16")


def test_a_layer_left_out_stays_in_fp32_where_fp16_would_overflow(easy: dict[str, Any]) -> None:
    hard = _outlier(easy, 1e5)
    graph, verdict = within_budget(**hard, max_drop=Allowed(0.5, "pp"))
    second = place(hard["model"]).layers[1]
    assert verdict.left_out == (second,)
    assert list(verdict.in_fp32) == [second]
    assert "reaches" in verdict.in_fp32[second]
    assert not any(node.op_type == "Cast" for node in graph.graph.node)


def test_no_int8_within_the_budget_is_a_failed_gate_that_tells_of_fp16(easy: dict[str, Any]) -> None:
    ruined = {**easy, "ranges": {name: largest / 1000 for name, largest in easy["ranges"].items()}}
    with pytest.raises(GateError, match=r"verdict FP16: INT8 makes accuracy worse by .*; 0\.50% is allowed\. FP16 "):
        within_budget(**ruined, max_drop=Allowed(0.5, "pp"))


def test_a_network_without_a_task_keeps_its_sqnr_with_the_fewest_layers_left_out(easy: dict[str, Any]) -> None:
    hard = _outlier(easy, 1000.0)
    model, ranges, maxima = hard["model"], hard["ranges"], hard["maxima"]
    _, plain = within_sqnr(model, ranges, maxima, runs=hard["runs"][:2], min_sqnr_db=-40.0)
    assert (plain.kind, plain.left_out, plain.samples, plain.metric) == ("INT8", (), 64, None)
    convs = [node.name for node in model.graph.node if node.op_type == "Conv"]
    asked = plain.sqnr_db + 6
    _, mixed = within_sqnr(model, ranges, maxima, runs=hard["runs"][:2], min_sqnr_db=asked)
    assert mixed.left_out == (convs[1],)
    assert mixed.sqnr_db >= mixed.min_sqnr_db == asked
    with pytest.raises(GateError, match=r"verdict FP16: INT8 keeps .* 200 dB is asked for\. FP16 keeps [67]\d"):
        within_sqnr(model, ranges, maxima, runs=hard["runs"][:2], min_sqnr_db=200.0)


@pytest.mark.parametrize(("text", "decibels"), [("30dB", 30.0), ("12.5 db", 12.5)])
def test_a_budget_of_sqnr_is_given_in_decibels(text: str, decibels: float) -> None:
    assert parse_sqnr(text) == decibels
    with pytest.raises(InputError, match="decibels"):
        parse_sqnr(text[:-2])


@pytest.mark.parametrize(
    ("needed", "count"), [(["a"], 1), (["b"], 1), (["a", "b"], 2), (["c", "g"], 2), (["h"], 1), (list("abcdefgh"), 8)]
)
def test_the_search_leaves_out_the_fewest(monkeypatch: pytest.MonkeyPatch, needed: list[str], count: int) -> None:
    """Where the accuracy is met if and only if the needed layers are left out; the order is that of the ranking."""
    order = list("abcdefghij")
    search = object.__new__(budget._Search)
    asked: list[frozenset[str]] = []

    def fits(left_out: Any) -> bool:
        asked.append(frozenset(left_out))
        return set(needed) <= set(left_out)

    monkeypatch.setattr(budget._Search, "fits", lambda self, left_out: fits(left_out))
    least = search.fewest(order)
    assert least == order.index(needed[-1]) + 1
    assert len(search.pruned(order[:least])) == count
    assert set(search.pruned(order[:least])) == set(needed)


def test_the_interval_of_a_paired_drop_covers_the_truth() -> None:
    """Of 1,000 experiments with a known drop of 1 point, 95 % give or take; the pairs are correlated."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        chance = rng.random(600)
        before, after = chance < 0.95, (chance < 0.93) | (chance > 0.99)
        low, high = paired_drop(before, after)[1]
        hits += low <= 0.01 <= high
    assert 930 <= hits <= 975
    drop, (low, high) = paired_drop(np.array([True] * 9 + [False]), np.array([True] * 8 + [False, True]))
    assert drop == 0.0
    assert low == pytest.approx(-high)
    low, high = paired_drop(np.ones(100, bool), np.ones(100, bool))[1]
    assert (low, high) == pytest.approx((-0.0272, 0.0272), abs=1e-3)  # no pair that differs is no proof of none


@pytest.mark.parametrize(
    ("text", "unit", "value", "drop"),
    [
        ("0.5pp", "share", 0.8, 0.005),
        ("0pp", "share", 0.8, 0.0),
        ("12.25 pp", "share", 0.8, 0.1225),
        ("2%", "share", 0.8, 0.016),
        ("2%", "m", -5.0, 0.1),
        ("0.3dB", "dB", 30.0, 0.3),
        ("0.25", "", 7.0, 0.25),
    ],
)
def test_a_drop_is_given_in_points_in_percent_or_in_the_unit_of_the_metric(
    text: str, unit: str, value: float, drop: float
) -> None:
    assert parse_drop(text).of(Score(metric="m", value=value, samples=1, unit=unit)) == pytest.approx(drop)


@pytest.mark.parametrize("text", ["-1pp", "pp", "100pp", "1e-1pp", "nanpp", "0.5 5", "3dB!"])
def test_what_is_no_drop_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"percentage points"):
        parse_drop(text)


@pytest.mark.parametrize(("text", "unit"), [("0.5", "share"), ("0.5pp", "dB"), ("1dB", "share"), ("1m", "")])
def test_a_drop_in_a_unit_that_the_metric_has_not_is_refused(text: str, unit: str) -> None:
    with pytest.raises(InputError, match="m is not measured in"):
        parse_drop(text).of(Score(metric="m", value=0.5, samples=1, unit=unit))


def test_worse_is_more_of_an_error_and_less_of_a_share() -> None:
    rng = np.random.default_rng(3)
    errors = rng.random(4000)
    before, after = (
        Score(metric="MAE", value=float(of.mean()), samples=4000, unit="m", higher_is_better=False, each=of)
        for of in (errors, errors + rng.normal(0.01, 0.1, 4000))
    )
    low, high = drop_interval(before, after)
    assert low < 0.01 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(4000), rel=0.1)  # paired: the errors' own spread is out
    assert low < drop_of(before, after) < high
    assert drop_interval(replace(before, each=None), after) is None
    assert drop_of(replace(before, higher_is_better=True), after) == -drop_of(before, after)
