"""Does MSN stand noise, blur and coarse weights better than BatchNorm, and do Lipschitz bounds say anything of it?

    python benchmarks/robustness.py [--seeds 5] [--out FILE]

The built-in recipes cnn3_bn and cnn3_msn, 4 epochs on the bundled digits. Each trained network is judged on
the test images: as they are, with noise of some deviation on the scale 0..1, blurred by a Gaussian of some pixels, and
with its folded weights rounded to a few bits per output channel. Its Lipschitz bounds are those of
msn_deploy.msn.lipschitz at 32 test images, in units of the prepared input. One run after the other is written; runs
that the file has are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data import load_split, to_input
from msn_deploy.msn import fold
from msn_deploy.msn.lipschitz import lipschitz
from msn_deploy.training import load_checkpoint, train
from msn_deploy.training.runner import logits_of

SCHEMA = "msn-deploy-robustness/1"
OUT = Path(__file__).resolve().parent / "results" / "robustness.json"
NET, EPOCHS, LOOKED_AT = "cnn3", 4, 32  # the last: images
NORMS = ("bn", "msn")
NOISE = (0.2, 0.4, 0.6)  # deviation
BLUR = (2.0, 3.0, 4.0)  # pixels
BITS = (8, 4, 3, 2)


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Return a folded network whose weights are rounded to 2^bits - 1 levels per output channel, around zero."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            rows = layer.weight.detach().flatten(1)
            step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            layer.weight.data = (rows / step).round().mul(step).view_as(layer.weight)
    return model


def one(norm: str, seed: int) -> dict[str, Any]:
    """Train and judge one network."""
    recipe = load_recipe(f"{NET}_{norm}").override(epochs=EPOCHS, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = train(recipe, out=Path(folder)).checkpoint
        model, info = load_checkpoint(checkpoint)
    split = load_split(recipe.data, "test", **recipe.image_size)
    pixels = split.images.astype(np.float32)
    draw = np.random.default_rng(seed)

    def accuracy(images: np.ndarray, judged: nn.Module) -> float:
        prepared = to_input(images.clip(0, 255).round().astype(np.uint8), info.preprocess)
        return float((logits_of(judged, prepared).argmax(1) == split.labels).mean())

    plain = fold(model)
    found = {"clean": accuracy(pixels, model)}
    found |= {f"noise {each}": accuracy(pixels + draw.normal(0, 255 * each, pixels.shape), model) for each in NOISE}
    found |= {f"blur {each}": accuracy(gaussian_filter(pixels, (0, each, each, 0)), model) for each in BLUR}
    found |= {f"{each} bits": accuracy(pixels, rounded(plain, each)) for each in BITS}
    bounds = lipschitz(model, torch.from_numpy(to_input(split.images[:LOOKED_AT], info.preprocess)))
    return {"norm": norm, "seed": seed, "accuracy": found, "lipschitz": asdict(bounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out.is_file() else []
    done = {(run["norm"], run["seed"]) for run in runs}
    for seed in range(options.seeds):
        for norm in NORMS:
            if (norm, seed) not in done:
                runs.append(one(norm, seed))
                write_json(options.out, {"schema": SCHEMA, "net": NET, "epochs": EPOCHS, "runs": runs})


if __name__ == "__main__":
    main()
