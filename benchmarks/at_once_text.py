"""Sentences on what was measured with several things at once: threads that share a model, stages of a video."""

from __future__ import annotations

import json
from pathlib import Path


def load_threads(recorded: Path) -> str:
    result = json.loads((recorded / "load-threads.json").read_text(encoding="utf-8"))
    cases = result["cases"]
    wrong, answers = (sum(case[key] for case in cases) for key in ("wrong", "answers"))
    gains = "; ".join(
        f"{case['network']}, {case['threads'] or 'all'} {'thread' if case['threads'] == 1 else 'cores'} a run: "
        f"{case['gain'][0]:.2f} ({case['gain'][1]:.2f} to {case['gain'][2]:.2f})"
        for case in cases
    )
    return (
        f"Eight threads that share one ONNX file give the answers of one thread ({wrong} of {answers} differ), and "
        f"answer this many times as many pictures per second, on {result['environment']['cores_usable']} cores that "
        f"other programs used as well: {gains}. By `python benchmarks/load_threads.py`, raw: "
        "`benchmarks/results/xeon-2-cores/load-threads.json`."
    )


def video(recorded: Path) -> str:
    result = json.loads((recorded / "video.json").read_text(encoding="utf-8"))
    done, work, wait = (result[name] for name in ("infer", "work", "wait"))
    in_place = done["frames"] - done["out_of_order"]
    return (
        f"On a made video of {done['frames']:,} frames of 320x240 and a small network, {in_place:,} frames came out "
        f"at their place, {done['per_s']:.0f} per second, and the process grew by {done['growth_mib']} MiB after the "
        "first quarter, on two idle cores. With all four stages made equally long by waiting, as for a camera, a GPU "
        f"or a hardware decoder, and one thread for inference, frames came {_times(wait)} as fast as in a loop, over "
        "parts of the video. With stages that keep a core busy for all of their time they came "
        f"{_times(work)} as fast: four such stages share two cores, which could give 2 at most. By "
        "`python benchmarks/video.py`, raw: "
        "`benchmarks/results/epyc-2-cores/video.json`."
    )


def in_flight(recorded: Path) -> str:
    result = json.loads((recorded / "in-flight.json").read_text(encoding="utf-8"))
    rows = [
        "| network | batch | in flight | images/s | to one at a time | to a loop by hand |",
        "|---|---|---|---|---|---|",
        *(
            f"| {case['network']} | {case['batch']} | {case['in_flight']} | {_interval(case['bench'], 0)} "
            f"| {_interval(case['gain_over_alone'], 2)} | {_interval(case['bench_to_by_hand'], 3)} |"
            for case in result["cases"]
        ),
    ]
    longest = max(case["seconds"] for case in result["cases"])
    long = sum(case["seconds"] > 20 for case in result["cases"])
    within = sum(case["within_5_percent"] for case in result["cases"])
    return "\n".join(
        [
            *rows,
            "",
            f"ONNX Runtime {result['environment']['versions']['onnxruntime']} on "
            f"{result['environment']['cores_usable']} cores of {result['environment']['cpu']}, 32x32 images, 95 % "
            "intervals. The last column is the rate that `bench` counts over that of a loop of threads written by "
            f"hand: {within} of {len(result['cases'])} are within 5 % of 1, interval included. Each arm was "
            f"measured for 20 s, and for longer where ten rounds did not fit or the interval was wider than 0.05 then "
            f"({long} cases, up to {longest:.0f} s); all of it counts. By `make in-flight`, raw: "
            "`benchmarks/results/epyc-2-cores/in-flight.json`.",
        ]
    )


def _interval(values: list[float], digits: int) -> str:
    middle, low, high = values
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _times(case: dict) -> str:
    ratio, low, high = case["ratio"]
    return f"{ratio:.1f} times ({low:.1f} to {high:.1f})"
