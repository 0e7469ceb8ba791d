"""Fill the generated pages and blocks from committed results; `--check` (for the tests) only compares them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import accuracy
import at_once_text
import control
import fp8
import gap_text
import graphs_text
import int8_steps
import int8_table
import networks_text
import ort_int8_text
import pitch
import qat_table
import quantisers_text
import reference
import sigma_text
import step_text
import suite_table
import sweep_text
import task_nets
import task_peers_text
import tiny_text
import tune_latency

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "epyc-2-cores"
RECORDED = ROOT / "benchmarks" / "results" / "xeon-2-cores"  # what record.sh and `make peers` wrote last
WHOLE: dict[str, Callable[[], str]] = {
    "background/sigma.md": sigma_text.page,
    "guides/fine-tuning.md": lambda: tiny_text.page(ROOT),
    "results/gap.md": gap_text.page,
    "results/graphs.md": lambda: graphs_text.page(ROOT),
    "results/networks.md": lambda: networks_text.page(RECORDED),
    "results/sweep.md": lambda: sweep_text.page(RECORDED / "sweep.json"),
    "results/training-step.md": lambda: step_text.page(RECORDED, RESULTS),
}
"""Pages of docs/ that are generated as a whole. In all others, and in the README, blocks are filled in."""


def blocks() -> dict[str, str]:
    """Return the text of every generated block by name."""
    return {
        **reference.blocks(),
        "why": pitch.why(RECORDED, RESULTS),
        "results": pitch.table(RECORDED, RESULTS),
        "clone": pitch.clone(),
        "demo-stages": pitch.stages(RESULTS / "demo.txt"),
        "demo": _console("make demo", _epochs_shortened((RESULTS / "demo.txt").read_text(encoding="utf-8"))),
        "jetson": _console(
            "msn-deploy build-engine runs/vgg7_msn.onnx --precision int8 --target orin-nano",
            (RECORDED / "jetson.txt").read_text(encoding="utf-8"),
        ),
        "measured": _measured(),
        "authors": _authors(),
        "accuracy": _accuracy(),
        "gap": _gap(),
        "throughput": _throughput(),
        "study": _study(),
        "gan": _gan(),
        "int8": int8_table.text(),
        "int8-steps": int8_steps.text(),
        "fp8": fp8.text(),
        "qat": qat_table.text(),
        "quantisers": quantisers_text.text(RESULTS / "quantisers.json"),
        "ort-int8": ort_int8_text.block(RESULTS / "ort-int8.json"),
        "suite": suite_table.text(),
        "control": control.text(RESULTS / "control.json"),
        "uint8-input": _uint8_input(),
        "load-threads": at_once_text.load_threads(RECORDED),
        "video": at_once_text.video(RESULTS),
        "in-flight": at_once_text.in_flight(RESULTS),
        "task-peers": task_peers_text.block(json.loads((RECORDED / "task-peers.json").read_text(encoding="utf-8"))),
        "trained": task_nets.text(),
        "tune": tune_latency.text(RESULTS / "tune-latency.json"),
        "diff": networks_text.injected(RESULTS / "diff.json"),
    }


def _console(command: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"```text\n$ {command}\n{lines}\n```"


def _epochs_shortened(text: str) -> str:
    """Leave out the lines of all epochs but the first of each training."""
    kept: list[str] = []
    for line in text.splitlines():
        if " epoch " not in line or " epoch 1/" in line:
            kept.append(line)
        elif kept[-1] != "...":
            kept.append("...")
    return "\n".join(kept)


def _measured() -> str:
    demo = json.loads((RESULTS / "demo-bench.json").read_text(encoding="utf-8"))
    int8 = json.loads((RESULTS / "int8-on-cpu.json").read_text(encoding="utf-8"))
    startup = json.loads((RECORDED / "startup.json").read_text(encoding="utf-8"))
    environment = demo["environment"]
    rows = [
        "| VGG7, digits, batch 1 | median ms | ratio | 95 % interval | verdict |",
        "|---|---|---|---|---|",
        *(_row(arm, demo["baseline"]) for arm in demo["arms"]),
        *(_row({**arm, "name": "MSN INT8, against MSN folded"}, "") for arm in int8["arms"] if "int8" in arm["name"]),
    ]
    return "\n".join(
        [
            *rows,
            "",
            f"ONNX Runtime {environment['versions']['onnxruntime']} on the CPU ({environment['cpu']}, "
            f"{demo['profile']['threads']} threads), interleaved blocks. `msn-deploy --help` takes "
            f"{startup['ratio']:.1f} times as long as `python -c pass`.",
        ]
    )


def _row(arm: dict, baseline: str) -> str:
    if arm["name"] == baseline:
        return f"| {arm['name']} | {arm['median_ms']:.3f} | 1 | | baseline |"
    low, high = arm["ratio_interval"]
    ratio = f"{arm['ratio']:.3f} | {low:.3f} to {high:.3f}"
    return f"| {arm['name']} | {arm['median_ms']:.3f} | {ratio} | {arm['verdict']} |"


def _authors() -> str:
    files = json.loads((RESULTS / "authors.json").read_text(encoding="utf-8"))["files"]
    rows = ["| published file | holds | recorded | measured here |", "|---|---|---|---|"]
    for each in files:
        if each["epoch"] and "_0.001_MNIST" in each["file"]:
            measured = f"{each['measured_test_accuracy']:.2%}"
            rows.append(f"| {each['file']} | {each['norm']} | {each['recorded_test_accuracy']:.2%} | {measured} |")
    svhn = [each for each in files if "SVHN" in each["file"] and "refused" not in each]
    named = [each for each in svhn if not each["file"].startswith("BN")]
    batch_norm = sum(each["norm"] == "bn" for each in named)
    return "\n".join(
        [
            *rows,
            "",
            f"**Of the {len(named)} published SVHN networks that are called MSN or SN, {batch_norm} hold BatchNorm**: "
            "tracked variances, no spectral norm. Their recorded accuracies say nothing about MSN.",
        ]
    )


def _accuracy() -> str:
    rows = [
        "| % of test images, mean ± deviation (seeds) | arm | accuracy | against BN, points (95 %) |",
        "|---|---|---|---|",
    ]
    for path in sorted(accuracy.RESULTS.glob("*.json")):
        result = accuracy.read(path.stem)
        if path.stem.startswith(("gap-", "scenes-")) or result is None:
            continue
        for row in accuracy.rows_of(result):
            rows.append(f"| {result['title']} | {row.arm} | {' | '.join(accuracy.said(row))} |")
    return "\n".join(rows)


def _throughput() -> str:
    result = json.loads((RESULTS / "throughput.json").read_text(encoding="utf-8"))
    loops = {each["case"]: each["rows"]["trainer"]["throughput_ratio"] for each in result["cases"][:-1]}
    said = "; ".join("{}: {:.2f} ({:.2f} to {:.2f})".format(case, *ratio) for case, ratio in loops.items())
    loader = result["cases"][-1]["rows"]
    others = [f"{1 / row['throughput_ratio'][0]:.1f} times {name}" for name, row in loader.items() if name != "ours"]
    return (
        f"Of the throughput of a bare loop over tensors that lie ready, the trainer reaches {said}. Its loader, with "
        f"crop and flip, gives {loader['ours']['images_per_s'] / 1e3:.0f},000 images of 3x32x32 per second, "
        f"{' and '.join(others)} (`benchmarks/results/epyc-2-cores/throughput.json`)."
    )


def _gap() -> str:
    result = accuracy.read("gap-vgg7")
    assert result is not None
    rows = [f"| {result['title'].partition(': ')[2]} | accuracy, % | against BN, points (95 %) |", "|---|---|---|"]
    rows += [f"| {row.arm} | {' | '.join(accuracy.said(row))} |" for row in accuracy.rows_of(result)]
    return "\n".join(rows)


def _study() -> str:
    nets = {"cnn3, MNIST": "study-cnn3", "VGG7, Fashion-MNIST": "study-vgg7"}
    found = {title: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for title, name in nets.items()}
    rows = ["| the paper says | network | here |", "|---|---|---|"]
    for at, claim in enumerate(next(iter(found.values()))["claims"]):
        for title, each in found.items():
            judged = each["claims"][at]
            numbers = judged["numbers"].replace("|", "\\|")  # which would end the cell
            rows.append(f"| {claim['claim']} | {title} | {judged['verdict']}: {numbers} |")
    steps = json.loads((RECORDED / "train-step.json").read_text(encoding="utf-8"))["cases"]
    for case in steps:
        if (case["form"], case["dtype"], case["layout"]) == ("eager", "float32", "contiguous"):
            ratio, low, high = case["rows"]["msn"]["to_bn"]
            verdict = "holds" if ratio <= 0.84 else "holds in part" if high < 1 else "does not hold"
            net = step_text.NETS[case["net"]]
            said = f"{verdict}: a training step takes {ratio:.2f} of BN's time ({low:.2f} to {high:.2f}), on this CPU"
            rows.append(f"| MSN is about 16 % faster than BN | {net} | {said} |")
    return "\n".join(rows)


def _gan() -> str:
    result = json.loads((RESULTS.parent / "gan.json").read_text(encoding="utf-8"))
    rows = [
        "| images | confidence | entropy of an image | entropy of the classes | score | FID to real test images |",
        "|---|---|---|---|---|---|",
    ]
    gans = result["gans"]
    first = next(iter(gans.values()))
    looks = [("real test images", first["real"], first["fid_real"])]
    looks += [(f"{name[4:].upper()}GAN", each["generated"], each["fid"]) for name, each in gans.items()]
    for name, seen, fid in looks:
        numbers = [f"{seen[key]:.3f}" for key in ("confidence", "image_entropy", "class_entropy")]
        rows.append(f"| {name} | {' | '.join(numbers)} | {seen['score']:.2f} | {fid:.1f} |")
    worst = max(each["onnx_against_torch"] for each in gans.values())
    return "\n".join(
        [
            *rows,
            "",
            f"{first['epochs']} epochs each; {first['samples']:,} images each, judged by {result['judge']} (test "
            f"accuracy {first['judge_accuracy']:.2%}) on its own features; FID of real images is that of training "
            f"images. The folded ONNX generators equal torch within {worst:.1g}, and TensorRT-RTX builds them in FP16 "
            f"({first['engine_weight_bytes'] / 2**20:.1f} MiB of weights).",
            "",
            "| MSNGAN | SNGAN, from the same latents |",
            "|---|---|",
            "| ![Samples of the MSNGAN](../images/gan_msn.png) | ![Samples of the SNGAN](../images/gan_sn.png) |",
        ]
    )


def _uint8_input() -> str:
    """Return what a query from a frame's bytes takes; nothing where it was not measured yet."""
    path = RECORDED / "uint8-input.json"
    if not path.is_file():
        return ""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        "| from a frame to the output | numpy and a file of floats, ms | file of bytes, ms | ratio "
        "| against numpy in place | left before the first layer |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        channels, *sides = case["input"]
        found, floats = case["rows"]["nhwc"], case["rows"]["floats"]
        ratios = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*found[key]) for key in ("to_floats", "to_in_place"))
        size, times = "x".join(map(str, (*sides, channels))), f"{floats['median_ms']:.3f} | {found['median_ms']:.3f}"
        left = ", ".join(case["left"]["nhwc"])
        rows.append(f"| {case['network']}, {size}, `{case['preset']}` | {times} | {ratios} | {left} |")
    environment = result["environment"]
    worst = max(row["apart"] for case in result["cases"] for row in case["rows"].values())
    rows += [
        "",
        f"ONNX Runtime {environment['versions']['onnxruntime']} on {result['threads']} threads ({environment['cpu']}), "
        "frames with channels last, batch 1; median ratio of interleaved rounds with its 95 % interval. `to_input` of "
        "this package prepares the floats; in place: by the fewest passes that numpy has. Outputs differ by at most "
        f"{worst:.1g} of their range. Raw, by `python benchmarks/uint8_input.py`: "
        "`benchmarks/results/xeon-2-cores/uint8-input.json`.",
    ]
    return "\n".join(rows)


def filled(text: str, blocks: dict[str, str], *, page: str, used: set[str]) -> str:
    """Return the text of a page with every generated block replaced; adds their names to `used`."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name not in blocks:
            raise SystemExit(f"{page}: there is no block {name!r}")
        used.add(name)
        return f"<!-- begin {name} -->\n{blocks[name]}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (.+?) -->\n.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Return every page with the text that it should have: generated as a whole, or with its blocks filled in."""
    known, used = blocks(), set[str]()
    whole = {DOCS / name: text() for name, text in WHOLE.items()}
    others = [ROOT / "README.md", *sorted(set(DOCS.rglob("*.md")) - set(whole))]
    texts = {path: filled(path.read_text(encoding="utf-8"), known, page=path.name, used=used) for path in others}
    if lost := known.keys() - used:
        raise SystemExit(f"no page shows {', '.join(sorted(lost))}")
    return whole | texts


def main() -> None:
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
        raise SystemExit(f"{names} out of date: make readme" if stale else 0)
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")


if __name__ == "__main__":
    main()
