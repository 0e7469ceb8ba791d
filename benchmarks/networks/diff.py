"""Does `diff` name the layer in which an error was injected, in 20 networks of the networks suite?

    python benchmarks/networks/diff.py [NAME ...] [--out FILE]

Each network of `zoo.py` is exported; then the weights of one layer, drawn by a seed, are multiplied by 1.1 in a copy in
which every tensor and node has another name, and by 1.5 (the scale of its weight) in the INT8 file of it. `diff` on
random numbers has to name that layer: as the only one that is off in FP32, as the one that adds most in INT8.

The ranges of the INT8 file hold all that `diff` compares on, as calibrated ones nearly do. Else a layer may clip more
than was injected, and `diff` rightly names that: own_mlp on the range of a single input lost more in another layer.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
RESULT = HERE.parent / "results" / "epyc-2-cores" / "diff.json"
NAMES = (
    "own_m5", "own_pointnet", "own_unet3d", "own_stereo", "own_crnn", "own_espcn", "own_pose", "own_embedding",
    "own_ageandgender", "own_camera", "own_mlp", "timm_lcnet_050", "timm_mnasnet_small", "timm_mobilenetv3_small_100",
    "timm_resnet18", "timm_regnety_002", "timm_ghostnet_100", "torchvision_squeezenet1_1",
    "torchvision_shufflenet_v2_x0_5", "smp_Unet_resnet18",
)  # fmt: skip
SEEDS = (3, 4, 5)
FP32, INT8 = 1.1, 1.5  # what weights, and scales of weights, are multiplied by
CALIBRATED, COMPARED = 8, 2  # runs; the first of them


def row(name: str) -> dict[str, Any]:
    """Export one network; spoil and compare it once per seed."""
    import numpy as np
    import onnx
    import zoo
    from onnx import numpy_helper

    from msn_deploy.cli.options import parse_input, parse_shape
    from msn_deploy.core.model_info import ModelInfo
    from msn_deploy.engine.ort import run_on_one_thread
    from msn_deploy.model.graphs import with_outputs
    from msn_deploy.model.opened import open_model, with_info
    from msn_deploy.pipeline.diff import diff
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.quant.placement import name_of, place
    from msn_deploy.quant.quantize import quantize

    def spoiled(model: Any, constant: str, factor: float) -> Any:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        tensor = next(each for each in copied.graph.initializer if each.name == constant)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), constant))
        return copied

    network = zoo.BY_NAME[name]
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        fp32, out = Path(folder) / "fp32.onnx", Path(folder) / "model.onnx"
        named = "=" in network.inputs[0]
        shapes = tuple(map(parse_input if named else parse_shape, network.inputs))
        given: dict[str, Any] = {"inputs": shapes} if named else {"input_shape": shapes[0]}
        export_onnx(zoo.built(name), fp32, simplify=False, **given)
        model = open_model(fp32, step="diff").proto
        info = ModelInfo(net="custom", norm="custom")
        placement = place(model)
        runner = run_on_one_thread(with_outputs(model, placement.tensors))
        ranges = dict.fromkeys(placement.tensors, 0.0)
        for seed in range(CALIBRATED):
            feeds = zoo.feeds_of(network, seed=seed)  # what `diff` draws, too
            taken = {spec.name: array for spec, array in zip(runner.inputs, feeds.values(), strict=True)}
            for tensor, value in runner.run(taken).items():
                if tensor in ranges:
                    ranges[tensor] = max(ranges[tensor], float(np.abs(value).max()))
        int8 = quantize(model, ranges)
        for seed in SEEDS:
            layer = random.Random(f"{seed} {name}").choice(placement.layers)
            (node,) = (each for each in model.graph.node if name_of(each) == layer and each.op_type != "Add")
            out.write_bytes(with_info(renamed(spoiled(model, node.input[1], FP32)), info))
            found = diff(out, fp32, samples=COMPARED)
            (weight,) = (each for each in int8.graph.node if name_of(each) == layer and each.op_type == node.op_type)
            scale = next(each.input[1] for each in int8.graph.node if each.output[0] == weight.input[1])
            out.write_bytes(with_info(spoiled(int8, scale, INT8), info))
            twin = diff(out, fp32, samples=COMPARED)
            off = [each.layer for each in found.tensors if each.off]
            worst = [(each.layer, round(each.own.sqnr_db, 1)) for each in twin.worst[:2] if each.own]
            cases.append({
                "seed": seed,
                "layer": layer,
                "off": off,
                "int8_worst": worst,
                "int8_first_off": None if twin.first_off is None else twin.first_off.layer,
                "named": off == [layer] and worst[0][0] == layer,
            })  # fmt: skip
    return {
        "layers": len(placement.layers),
        "tensors": len(found.tensors),
        "unmatched": len(found.unmatched),
        "by_position": sum(each.by == "position" for each in found.tensors),
        "cases": cases,
    }


def renamed(model: Any) -> Any:
    """Give every tensor and node of a graph without inner graphs another name, in place; inputs and outputs too."""
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    for node in model.graph.node:
        for fields in (node.input, node.output):
            fields[:] = [new(name) for name in fields]
        node.name = ""
    for each in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        each.name = new(each.name)
    del model.graph.value_info[:]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--row", action="store_true", help="run one network in this process and print what it came to")
    options = parser.parse_args()
    if options.row:
        sys.stdout.write(json.dumps(row(options.names[0])))
        return
    from run import ROOT, environment

    python = environment((ROOT / ".venv" / "networks").resolve())
    rows: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else {}
    for name in options.names:
        done = subprocess.run(
            [str(python), __file__, name, "--row"], capture_output=True, text=True, check=False, env={
                "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": tempfile.gettempdir(), "NO_COLOR": "1",
                "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true",
            },
        )  # fmt: skip
        rows[name] = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-600:]}
        named = [each["named"] for each in rows[name].get("cases", ())]
        sys.stderr.write(f"{name:<34}{sum(named)} of {len(named)}  {rows[name]}\n")
        ordered = {each: rows[each] for each in NAMES if each in rows}
        result = {"schema": 2, "rows": ordered}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
