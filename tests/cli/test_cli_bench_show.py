"""What `bench` prints fits 80 columns, whatever was measured and however long the names are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_results import NAMES, loaded, realistic

from msn_deploy.bench.stats import Ratio
from msn_deploy.bench.validity import Validity
from msn_deploy.cli.bench_show import show
from msn_deploy.cli.output import shortened


def printed(capsys, result):
    show(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.rstrip() for line in lines]


def named(result, names):
    arms = tuple(replace(arm, name=name) for arm, name in zip(result.arms, names, strict=True))
    return replace(result, arms=arms, baseline=names[0])


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_all_that_a_result_can_say_fits(capsys):
    names = [f"{name:_<17.17}.{at}x" for at, name in enumerate(NAMES)]
    assert {len(name) for name in names} == {20}
    result = named(realistic(), names)
    control = Ratio(ratio=1.034, low=1.02, high=1.05, p_value=0.01, rank_p_value=0.01, verdict="SLOWER")
    text = "\n".join(printed(capsys, replace(result, control=control)))
    for name in names:
        assert name in text  # whole
    flat = " ".join(text.split())
    assert f"same graph: {', '.join(names[1:3])}; a difference between them is noise" in flat
    assert f"{names[0]}: 10 mJ per query (9.65 to 10.6) above 4.12 W idle; VDD_IN, a value per 16 ms" in flat
    assert "32 of 480 blocks dropped: 32 cpu0 core_throttle: throttle events counted" in flat
    assert f"control: {names[0]} against itself came out SLOWER (1.034); this machine is too unsteady" in flat
    assert "ratio below 1 is faster; p90 and p99 are 99 % upper bounds" in flat


def test_one_row_per_model_with_the_numbers_of_the_result(capsys):
    result = realistic()
    lines = printed(capsys, named(result, ["bn_unfolded", "bn", "producer", "int8"]))
    assert lines[0].split() == ["model", "median", "ms", "p90", "p99", "ratio", "95", "%", "interval", "verdict"]
    for line, arm in zip(lines[2:6], result.arms, strict=True):
        assert f"{arm.median_ms:.3f}" in line
        assert f"{arm.p99_ms:.3f}" in line
        assert line.endswith("baseline" if arm is result.arms[0] else arm.verdict)
    low, high = result.arms[3].ratio_interval
    assert f"{result.arms[3].ratio:.3f}  {low:.3f} to {high:.3f}" in lines[5]


def test_the_graph_of_the_baseline_gets_no_verdict(capsys):
    result = named(realistic(), ["a", "bn", "producer", "int8"])
    row = printed(capsys, replace(result, baseline="bn"))[4]
    assert row.split()[0] == "producer"
    assert row.endswith("same graph")


def test_longer_names_lose_their_middle_and_stay_apart(capsys):
    result = realistic()
    names = [f"runs/2026/a_network_of_a_very_long_name_{at}_opset17.int8" for at in range(4)]
    lines = printed(capsys, named(result, names))
    assert all(line.startswith("runs/2026") for line in lines[2:6])
    assert "\N{HORIZONTAL ELLIPSIS}" in lines[2]
    assert lines[2].split()[0].endswith("int8")


def test_wide_numbers_fit_too(capsys):
    result = named(realistic(), [f"{name:_<17.17}.{at}x" for at, name in enumerate(NAMES)])
    slow = [
        replace(
            arm,
            median_ms=arm.median_ms * 3000,
            p90_ms=arm.p90_ms * 3000,
            p99_ms=arm.p99_ms * 3000,
            ratio=arm.ratio * 40,
            ratio_interval=(123.456, 1234.567),
            verdict="AMBIGUOUS",
        )
        for arm in result.arms
    ]
    text = "\n".join(printed(capsys, replace(result, arms=tuple(slow))))
    assert "123.46 to 1234.6" in text
    assert f"{result.arms[0].median_ms * 3000:.1f}" in text


def test_the_slowest_layers_of_each_model(capsys):
    result = realistic()
    lines = printed(capsys, result)
    text = " ".join(" ".join(lines).split())
    assert f"{NAMES[0]}: 40 layers, 590 MFLOP, 14.5 MB moved, 40.7 FLOP/B, reached" in text
    assert "Jetson Orin Nano 8GB allows 0.213 ms (memory)" in text
    rows = [line for line in lines if "BatchNormalization" in line]
    assert len(rows) == 2 * len(NAMES)  # of the five slowest, one in three
    first = result.arms[0].layers.layers[0]
    assert rows[0].split()[-4:] == [f"{first.us:.1f}", f"{first.share:.1%}", "fp16", "1"]
    others = [line for line in lines if line.startswith("35 others")]
    rest = result.arms[0].layers.total_us - sum(layer.us for layer in result.arms[0].layers.layers[:5])
    assert len(others) == len(NAMES)
    assert others[0].split()[2] == f"{rest:.1f}"


def test_nothing_of_what_was_not_measured(capsys):
    lines = printed(capsys, realistic(("cnn3_msn",), plain=True))
    assert len(lines) == 5
    assert lines[2].startswith("cnn3_msn")
    assert not any(word in " ".join(lines) for word in ("mJ", "dropped", "layers", "same graph"))
    validity = Validity(blocks=120, dirty_blocks=1, causes={"x": 1})
    dirty = printed(capsys, replace(realistic(("cnn3_msn",), plain=True), validity=validity))
    assert "1 of 120 blocks dropped: 1 x" in dirty


def test_all_that_is_known_of_a_model_under_load_fits(capsys):
    lines = printed(capsys, loaded())
    assert lines[0].split() == ["model", "images/s", "95", "%", "interval", "p50", "p95", "p99", "ratio", "verdict"]
    assert "968.83  960.20 to 977.50" in lines[2]
    text = " ".join(" ".join(lines).split())
    for said in (
        "one at a time 517.26 images/s (1.931 ms a query, 6 threads); 4 in flight give 1.873 times as many (1.860 to 1",
        "1.23 cores busy, GPU 87% busy, at most 346 MiB of this process, at most 2346 MiB of the board",
        "copy in 0.120, compute 1.550, copy out 0.013, together 1.683 ms of the GPU for one query alone",
        "soak of 30 min in power mode 25W (id 1): 960.10 images/s at first, 712.40 sustained (705.20 to 719.60)",
        "throttled from 7 min on (gpu clock below 75% of 918 MHz); slower by 5 % from 10 min on; at most 90 ",
        "gpu 619 to 918 MHz",
        "1.25 mJ per image; 10 mJ per query",
        "4 in flight, batch 8",
    ):
        assert said in text, said


def test_one_model_alone_has_no_ratio(capsys):
    result = loaded(("cnn3_msn",))
    lines = printed(capsys, result)
    assert lines[0].split() == ["model", "images/s", "95", "%", "interval", "p50", "p95", "p99"]


def test_shortened():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde\N{HORIZONTAL ELLIPSIS}hijk"
