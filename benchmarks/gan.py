"""Train the paper's two GANs, judge what they make, and take a generator all the way to an FP16 engine.

    python benchmarks/gan.py [--work FOLDER] [--judge CHECKPOINT] [--data FOLDER]

Goes on where it was stopped, and does nothing if the result is of the recipes as they are. The judge is a classifier
that `make paper` trains. Writes the last sample grids to docs/images/ and the numbers to benchmarks/results/gan.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.recipes import Recipe, load_recipe, recipe_from_dict
from msn_deploy.engine import load_runner, run_images
from msn_deploy.machine.environment import read_environment
from msn_deploy.nets.dcgan import latents
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.judge import judge
from msn_deploy.training import keep_freed_memory, load_checkpoint, train_gan

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("gan_msn", "gan_sn")
OUT = ROOT / "benchmarks" / "results" / "gan.json"


def judged(recipe: Recipe, work: Path, classifier: Path, data: str) -> dict[str, Any]:
    """Train (or take) one GAN and return what a classifier sees in its images."""
    name = recipe.name
    print(f"{name}: training {recipe.train.epochs} epochs, or taking what {work} has of them", flush=True)
    checkpoint = work / f"{name}.safetensors"
    state = work / f"{name}.state.safetensors"
    if state.is_file() or not checkpoint.is_file():
        train_gan(recipe.override(data=data), out=work, resume=state.is_file())
    last = json.loads((work / f"{name}.history.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["epoch"] == recipe.train.epochs, f"{checkpoint} is of {last['epoch']} epochs; remove it"
    seen = asdict(judge(checkpoint, classifier, data=data))
    return {
        "recipe": recipe.to_dict(),
        **{key: value for key, value in seen.items() if key not in ("generator", "judge", "data")},
        "epochs": last["epoch"],
        "history_last": {key: last[key] for key in last if key != "seconds"},
    }


def deployed(name: str, work: Path) -> dict[str, Any]:
    """Take a generator to ONNX and to an FP16 engine; return how far the one is from torch, and the other's size."""
    checkpoint = work / f"{name}.safetensors"
    onnx = work / f"{name}.onnx"
    export_onnx(str(checkpoint), onnx)
    inputs = latents(64, load_recipe(name).network_input[0], torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = load_checkpoint(checkpoint)[0](inputs).numpy()
    runner = load_runner(onnx)
    made = np.concatenate([run_images(runner, each[None].numpy()) for each in inputs])
    far = float(np.abs(made - wanted).max())
    built = build_engine(onnx, work / f"{name}.fp16.engine", precision="fp16")
    return {"onnx_against_torch": far, "engine_weight_bytes": built.engine.weight_memory_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gan")
    parser.add_argument(
        "--judge", type=Path, default=ROOT / "runs" / "paper" / "fashion-vgg7" / "BN-0" / "vgg7_bn.safetensors"
    )
    parser.add_argument("--data", default="fashion-mnist")
    options = parser.parse_args()
    keep_freed_memory()
    there = json.loads(OUT.read_text(encoding="utf-8"))["gans"] if OUT.is_file() else {}
    if all(
        name in there and recipe_from_dict(there[name]["recipe"], source=name) == load_recipe(name) for name in NAMES
    ):
        print("both GANs are there")
        return
    gans = {}
    for name in NAMES:
        seen = judged(load_recipe(name), options.work, options.judge, options.data)
        gans[name] = {**seen, **deployed(name, options.work)}
        grid = options.work / f"{name}.epoch-{seen['epochs']:03}.png"
        shutil.copyfile(grid, ROOT / "docs" / "images" / f"{name}.png")
    result = {"schema": 1, "judge": options.judge.stem, "environment": read_environment().to_json(), "gans": gans}
    write_json(OUT, result)


if __name__ == "__main__":
    main()
