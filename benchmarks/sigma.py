"""How far is the tracked sigma from the largest singular value, along a training and at its end?

    python benchmarks/sigma.py [--seeds 2] [--out FILE] [--only cnn3]
    python benchmarks/sigma.py --cost [--seconds S]     what more iterations cost, on an idle machine

Four networks with MSN, each with 1 and with 4 power iterations per step. cnn3 and VGG7 are trained as their recipes
say, DenseNet-BC-22 on 2,000 images of Fashion-MNIST with batches of 32, and the U-Net of peers/step_nets.py on those,
to tell the class of each pixel that is lit, with the same optimizer and schedule. Every fifth step all layers are
compared with their singular value decomposition. One run after the other is written; runs that the file has are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.core.artifacts import write_json
from msn_deploy.core.recipes import TrainOptions, load_recipe, with_settings
from msn_deploy.data import load_split, to_input
from msn_deploy.machine.environment import read_environment
from msn_deploy.msn import MSNConv2d, lipschitz, sigma_errors
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets import build_net
from msn_deploy.training import keep_freed_memory, train
from msn_deploy.training.optimizer import learning_rate, make_optimizer

SCHEMA = "msn-deploy-sigma/1"
OUT = Path(__file__).resolve().parent / "results" / "sigma.json"
ITERATIONS = (1, 4)
IMAGES = 2000  # of Fashion-MNIST
LOOKED_AT = 32  # test images, for the Lipschitz bounds
EVERY = 5  # steps
_IGNORED = -100  # label of a pixel that is of no garment, as torch's cross entropy has it
RECIPES = {
    "cnn3": ("cnn3_msn", ["data=digits"]),
    "vgg7": ("vgg7_msn", ["data=digits"]),
    "densenet_bc_22": ("densenet_bc_22_msn", ["data=fashion-mnist", "train.batch_size=32", "train.amp=false"]),
}


class Errors:
    """An observer: the largest error of all layers at every EVERY-th step."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, float]] = []

    def begin(self, model: nn.Module) -> None:
        self.model = model

    def before_step(self, step: int) -> None:
        if step % EVERY == 0:
            self.looks.append((step, round(max(map(abs, sigma_errors(self.model).values())), 6)))

    def after_epoch(self, entry: Mapping[str, Any]) -> None:
        self.entry = entry


def of_recipe(net: str, iterations: int, seed: int) -> dict[str, Any]:
    """Train a recipe and return its looks, the errors at the end and the accuracy."""
    name, settings = RECIPES[net]
    settings = [*settings, f"train.power_iterations={iterations}", f"train.seed={seed}"]
    recipe, errors = with_settings(load_recipe(name), settings), Errors()
    limit = IMAGES if recipe.data == "fashion-mnist" else None
    with tempfile.TemporaryDirectory() as folder:
        info = train(recipe, out=Path(folder), limit_train=limit, observer=errors).info
    images = load_split(recipe.data, "test", **recipe.image_size).first(LOOKED_AT).images
    found = ended(errors, torch.from_numpy(to_input(images, info.preprocess)))
    return {**found, "accuracy": errors.entry["test_accuracy"]}


def ended(errors: Errors, images: torch.Tensor) -> dict[str, Any]:
    """Return the looks, the errors at the end, and the Lipschitz bounds at some test images."""
    bounds = lipschitz(errors.model.eval(), images)
    said = {"lower": bounds.lower, "upper": bounds.upper, "upper_by_matrix": bounds.upper_by_matrix, "why": bounds.why}
    return {"looks": errors.looks, "end": sigma_errors(errors.model), "lipschitz": said}


def of_unet(net: str, iterations: int, seed: int) -> dict[str, Any]:
    """Train the U-Net and return the same; the accuracy is that of the test images' pixels."""
    options = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01)
    torch.manual_seed(seed)
    model, errors = unet(iterations), Errors()
    errors.begin(model)
    sides = []
    for split in ("train", "test"):
        part = load_split("fashion-mnist", split, height_px=32, width_px=32, channels=1, fit="pad").first(IMAGES)
        images = torch.from_numpy(part.images).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(part.labels).view(-1, 1, 1).where(images[:, 0] > 0, _IGNORED)
        sides.append((images.expand(-1, 3, -1, -1), labels))
    (images, labels), (test_images, test_labels) = sides
    optimizer, step = make_optimizer(model, options), 0
    per_epoch = math.ceil(len(images) / options.batch_size)
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(images)).split(options.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / (options.epochs * per_epoch), options)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[chosen]), labels[chosen]))
            errors.before_step(step)
            optimizer.step()
            step += 1
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(chosen).argmax(1) for chosen in test_images.split(100)])
    hits = (guesses == test_labels)[test_labels != _IGNORED]
    return {**ended(errors, test_images[:LOOKED_AT]), "accuracy": float(hits.float().mean())}


def unet(iterations: int) -> nn.Module:
    """Return the U-Net with MSN, untrained: (N, 3, H, W) to logits (N, 10, H, W)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
    import step_nets
    from train_step_arms import Parts

    layer = partial(MSNConv2d, init_gain=math.sqrt(2), power_iterations=iterations)
    return step_nets.unet(Parts(layer))


def cost(net: str, seconds: float) -> dict[str, Any]:
    """Time one network's step, forward and backward, with each number of iterations, which take turns."""
    torch.manual_seed(0)
    if net == "unet":
        model, x = unet(1).train(), torch.randn(32, 3, 32, 32)
    else:
        recipe = load_recipe(RECIPES[net][0])
        model, x = build_net(recipe, classes=10).train(), torch.randn(recipe.train.batch_size, *recipe.network_input)
    layers = [module for module in model.modules() if isinstance(module, SpectralLayer)]

    def step(iterations: int) -> None:
        for layer in layers:
            layer.power_iterations = iterations
        torch.autograd.backward(model(x).square().mean())

    arms = [Arm(name=str(each), run=partial(step, each)) for each in ITERATIONS]
    options = MeasureOptions(seconds=seconds, warmup_seconds=1, warmup_queries=3, block_ms=1, settle_queries=0)
    medians = [block_medians(arm.blocks) for arm in measure(arms, options=options).arms]
    ratio = ratio_to_baseline(medians[-1], medians[0])
    return {
        "batch": len(x),
        "step_ms": round(float(np.median(medians[0])) / 1e6, 2),
        "ratio": [round(each, 4) for each in (ratio.ratio, ratio.low, ratio.high)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="networks, by comma; all by default")
    parser.add_argument("--cost", action="store_true", help="time the steps instead of training")
    parser.add_argument("--seconds", type=float, default=20, help="measured time per arm, s")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    nets: dict[str, Callable[[str, int, int], dict[str, Any]]] = {**dict.fromkeys(RECIPES, of_recipe), "unet": of_unet}
    chosen = options.only.split(",") if options.only else list(nets)
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    result = {"schema": SCHEMA, "torch": torch.__version__, "runs": {}, "cost": {}, **result}
    if options.cost:
        keep_freed_memory()
        result["cost"] = {net: cost(net, options.seconds) for net in chosen}
        result["cost_on"] = {"threads": torch.get_num_threads(), "environment": read_environment().to_json()}
        write_json(options.out, result)
        return
    for seed in range(options.seeds):
        for net in chosen:
            for iterations in ITERATIONS:
                name = f"{net}/{iterations}/{seed}"
                if name not in result["runs"]:
                    result["runs"][name] = nets[net](net, iterations, seed)
                    write_json(options.out, result)


if __name__ == "__main__":
    main()
