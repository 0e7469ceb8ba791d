"""Which convolutions of four networks compute in FP8, by the builder's own listing, and what FP8 costs in accuracy?

    python benchmarks/fp8.py [NETWORK ...] [--work FOLDER]

Trains each network where `--work` does not hold it yet (minutes), exports it, writes it in FP8 and in INT8, evaluates
all three with ONNX Runtime on the whole test split, and builds the FP8 file with TensorRT-RTX for each target, which
needs no GPU. As a control, a file with FP8 weights alone is built too: none of its convolutions may count.
Results: benchmarks/results/fp8.json. A network that is there already is measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.recipes import load_recipe
from msn_deploy.engine.build import BuildReport
from msn_deploy.engine.inspector import count_convs
from msn_deploy.machine.environment import read_environment
from msn_deploy.model.graphs import drop_unread_constants

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "fp8.json"
TARGETS = ("rtx-sm89", "rtx-sm120")
RECIPES = {"cnn3": "cnn3_msn", "VGG7": "vgg7_msn", "U-Net": "unet_msn"}
NETWORKS = (*RECIPES, "ResNet-18")
METHODS = ("minmax", "percentile")
CONTROL = "cnn3"
_WIDTH, _SIDE_PX, _EPOCHS = 16, 32, 3  # of the ResNet-18


def exported(name: str, work: Path) -> Path:
    """Return the FP32 file of a network, which is trained and exported if it is not there."""
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.training import train

    path = work / f"{name}.onnx"
    if not path.is_file():
        if name in RECIPES:
            checkpoint = work / f"{RECIPES[name]}.safetensors"
            if not checkpoint.is_file():
                train(load_recipe(RECIPES[name]), out=work)
            export_onnx(str(checkpoint), path)
        else:
            path.write_bytes(resnet18())
    return path


def resnet18() -> bytes:
    """Return a ResNet-18 that was trained on digits."""
    import torch
    from peers.resnet18 import ResNet18

    from msn_deploy.core.model_info import ModelInfo
    from msn_deploy.data import load_split, to_input
    from msn_deploy.data.preprocess import measured_preprocess
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.graph.fold import fold_graph
    from msn_deploy.model.opened import with_info

    torch.manual_seed(0)
    split = load_split("digits", "train", height_px=_SIDE_PX, width_px=_SIDE_PX, channels=3)
    prepare = measured_preprocess(split.images)
    images, labels = torch.from_numpy(to_input(split.images, prepare)), torch.from_numpy(split.labels).long()
    net = ResNet18(_WIDTH)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    graph = fold_graph(to_onnx(net.eval(), input_shape=(1, 3, _SIDE_PX, _SIDE_PX))).model
    classes = tuple(map(str, range(10)))
    info = ModelInfo(
        net="resnet18", norm="bn", task="classification", data="digits", classes=classes, preprocess=prepare
    )
    return with_info(graph, info)


def measured(name: str, work: Path) -> dict[str, Any]:
    """Return the accuracy of a network in each precision, and what its engines in FP8 are made of."""
    from msn_deploy.pipeline.calibrate import calibrate
    from msn_deploy.pipeline.evaluate import evaluate

    source = exported(name, work)
    fp8, int8 = (work / f"{name}.{precision}.onnx" for precision in ("fp8", "int8"))
    made = {method: calibrate(source, fp8, precision="fp8", method=method) for method in reversed(METHODS)}
    written = {"fp8": made[METHODS[0]], "int8": calibrate(source, int8)}  # the file is that of the default
    scores = {"fp32": evaluate(source), "fp8": evaluate(fp8), "int8": evaluate(int8)}
    engines = {target: engine(fp8, target) for target in TARGETS}
    return {
        "metric": scores["fp32"].metric,
        "samples": scores["fp32"].samples,
        "scores": {precision: score.value for precision, score in scores.items()},
        "sqnr_db": {precision: report.parity.sqnr_db for precision, report in written.items() if report.parity},
        "sqnr_db_by_method": {method: report.parity.sqnr_db for method, report in made.items() if report.parity},
        "bytes": {"fp32": source.stat().st_size, "fp8": fp8.stat().st_size, "int8": int8.stat().st_size},
        "in_fp16": made[METHODS[0]].in_fp16,
        "engines": engines,
    }


def engine(path: Path, target: str, precision: str = "fp8") -> dict[str, Any]:
    """Build a file for a target, and count its convolutions: in the file, in FP8, and with FP8 weights alone."""
    from msn_deploy.engine import BuildOptions, find_target
    from msn_deploy.pipeline.build import build_engine

    options = BuildOptions(target=find_target(target), backend="tensorrt-rtx")
    report = build_engine(path, path.with_suffix(f".{target}.engine"), precision=precision, options=options).engine
    assert report is not None
    convolutions, stored = in_the_file(onnx.load(path))
    fp8 = count_convs(report.layers, "fp8")
    return {
        "builder": f"{report.backend} {report.backend_version}",
        "convolutions": convolutions,
        "listed": listed(report),
        "fp8": fp8,
        "only_weights": stored - fp8,
        "not_fp8": [layer.name for layer in report.not_fp8],
        "layers": len(report.layers),
        "weight_memory_bytes": report.weight_memory_bytes,
    }


def listed(report: BuildReport) -> int:
    """Return how many convolutions the builder lists, whatever they compute in."""
    return sum(
        count_convs(report.layers, precision) for precision in {layer.precision or "" for layer in report.layers}
    )


def in_the_file(model: ModelProto) -> tuple[int, int]:
    """Return how many convolutions a file has, and how many of them have a weight in FP8."""
    weights = {each.name for each in model.graph.initializer if each.data_type == TensorProto.FLOAT8E4M3FN}
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    stored = 0
    for node in convolutions:
        maker = made_by.get(node.input[1])
        if maker is not None and maker.op_type == "Cast":
            maker = made_by.get(maker.input[0])
        stored += maker is not None and maker.input[0] in weights
    return len(convolutions), stored


def weights_alone(model: ModelProto) -> ModelProto:
    """Return an FP8 graph whose activations are not rounded any more, so that it computes in FP16."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rounds = {node.output[0]: node for node in result.graph.node if node.op_type == "QuantizeLinear"}
    reads = [node for node in result.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in rounds]
    plain = {node.output[0]: rounds[node.input[0]].input[0] for node in reads}
    kept = [node for node in result.graph.node if node not in reads and node.op_type != "QuantizeLinear"]
    for node in kept:
        node.input[:] = [plain.get(name, name) for name in node.input]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    drop_unread_constants(result.graph)
    return result


def control(work: Path) -> dict[str, Any]:
    """Return what is counted of a network with FP8 weights alone, per target."""
    path = work / "weights-alone.onnx"
    onnx.save(weights_alone(onnx.load(work / f"{CONTROL}.fp8.onnx")), path)
    return {target: engine(path, target, "fp16") for target in TARGETS}


def text() -> str:
    """Return what the docs say of the committed result."""
    value = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = [
        "| network | metric | FP32 | FP8 | INT8 | SQNR, dB: FP8 / INT8 | convolutions in FP8, SM89 / SM120 "
        "| with FP8 weights alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        one = value["networks"][name]
        scores = " | ".join(f"{100 * one['scores'][precision]:.2f}" for precision in ("fp32", "fp8", "int8"))
        sqnr = " / ".join(f"{one['sqnr_db'][precision]:.1f}" for precision in ("fp8", "int8"))
        engines = [one["engines"][target] for target in TARGETS]
        in_fp8 = " / ".join(f"{each['fp8']} of {each['convolutions']}" for each in engines)
        alone = " / ".join(str(each["only_weights"]) for each in engines)
        rows.append(f"| {name} | {one['metric']}, % | {scores} | {sqnr} | {in_fp8} | {alone} |")
    seen = value["control"][TARGETS[0]]
    found = [value["networks"][name] for name in NETWORKS]
    higher = sum(each["sqnr_db"]["fp8"] > each["sqnr_db"]["int8"] for each in found)
    better = sum(each["sqnr_db_by_method"]["minmax"] >= each["sqnr_db_by_method"]["percentile"] for each in found)
    rows += [
        "",
        "Digits, and for the U-Net scenes of digits. Metrics are those of ONNX Runtime on the whole test split; engines"
        f" are those of {seen['builder']}, counted in its listing of layers. The control is {CONTROL} with FP8 weights "
        f"alone: {seen['fp8']} of {seen['convolutions']} convolutions count. FP8 keeps a higher SQNR than INT8 in "
        f"{higher} of {len(found)} networks; the largest value keeps at least that of a percentile of 99.99 in "
        f"{better}. The ResNet-18 is {_WIDTH} channels wide and was trained for {_EPOCHS} epochs. Raw, by `make fp8`: "
        "`benchmarks/results/fp8.json`.",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=", ".join(NETWORKS))
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "fp8", help="where files are kept")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"schema": 1, "networks": {}}
    for name in options.networks:
        result["networks"][name] = measured(name, options.work)
        print(json.dumps({name: result["networks"][name]}), flush=True)
        if name == CONTROL:
            result["control"] = control(options.work)
        write_json(RESULT, result | {"environment": read_environment().to_json()})


if __name__ == "__main__":
    main()
