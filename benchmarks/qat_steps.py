"""Do PyTorch and ONNX Runtime compute the same of an INT8 file? With steps of few bits, and with any steps.

    python benchmarks/qat_steps.py [--work FOLDER]

Takes the float checkpoints that `benchmarks/paper.py` and `benchmarks/qat.py` left below `--work`, calibrates each, and
compares the outputs of both on test images: as training under INT8 rounds step sizes, with four bits for weights as
well, with steps of 24 bits, and with biases that are no multiples of them. Result: benchmarks/results/qat-steps.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from paper import HERE

from msn_deploy.core.artifacts import write_json
from msn_deploy.machine.environment import read_environment

RESULT = HERE / "results" / "qat-steps.json"
NETWORKS = (
    "scenes-detector/BN-0/detector_bn",
    "scenes-unet/BN-0/unet_bn",
    "qat/mobile/BN-0/cnn3_bn",
    "qat/cnn3/BN-0/cnn3_bn",
)
STEPS = ((1, 4, 2, True), (4, 4, 4, True), (24, 24, 24, True), (1, 4, 2, False))
"""Bits of the steps of weights, of activations, and of those whose layers are averaged; are biases on their grid?"""
IMAGES, LIMIT = 200, 1e-4


def measured(checkpoint: Path) -> list[dict[str, Any]]:
    """Return how far the outputs of both are apart, over their range, for each kind of steps."""
    import torch

    from msn_deploy.data import load_split, to_input
    from msn_deploy.engine.ort import run_on_one_thread
    from msn_deploy.engine.runner import run_images
    from msn_deploy.quant.calibrate import ranges_from
    from msn_deploy.quant.histograms import collect, samples_of
    from msn_deploy.quant.placement import place
    from msn_deploy.training import fake_quant, graph_net, load_checkpoint
    from msn_deploy.training.qat import folded_graph
    from msn_deploy.training.runner import logits_of

    torch.set_num_threads(1)
    model, info = load_checkpoint(checkpoint)
    assert info.preprocess is not None
    learned, test = (load_split(info.data, split, **info.preprocess.image_size) for split in ("train", "test"))
    graph = folded_graph(model, (1, *info.preprocess.shape))
    calibration = to_input(learned.first(128).images, info.preprocess)
    seen = collect(graph, samples_of(graph, calibration), place(graph).tensors, load=run_on_one_thread)
    ranges = ranges_from(seen, method="mse")
    images, found = to_input(test.first(IMAGES).images, info.preprocess), []
    usual = graph_net.on_grid
    for *bits, grid in STEPS:
        fake_quant._WEIGHT_BITS, fake_quant._BITS, fake_quant._BITS_AVERAGED = bits
        graph_net.on_grid = usual if grid else lambda bias, unit: bias
        net = graph_net.quantised_net(graph, ranges).eval()
        runner = run_on_one_thread(net.to_onnx())
        ours = logits_of(net, images, chunk=50)
        theirs = np.concatenate([run_images(runner, images[at : at + 50]) for at in range(0, len(images), 50)])
        apart = np.abs(ours - theirs).reshape(len(images), -1).max(1) / np.ptp(ours)
        found.append({
            "bits": bits,
            "biases_on_grid": grid,
            "images": len(images),
            "worst": float(apart.max()),
            "median": float(np.median(apart)),
            "share_beyond_1e-4": float((apart > LIMIT).mean()),
        })  # fmt: skip
        graph_net.on_grid = usual
    return found


def main() -> None:
    import qat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    options = parser.parse_args()
    qat.register()
    networks = {}
    for name in NETWORKS:
        networks[name] = measured(options.work / f"{name}.safetensors")
        print(name, *networks[name], sep="\n  ", flush=True)
        write_json(RESULT, {"schema": 1, "networks": networks, "environment": read_environment().to_json()})


if __name__ == "__main__":
    main()
