"""From a recipe to the model files that a comparison needs: trained, exported, quantised, built; never made twice.

Checkpoints are in a folder of the user's, or in the cache, there in a folder per recipe; what is made from them is in
`models/` beside them. A file counts as there if its sidecar says that this version made it from what is there now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msn_deploy import __version__
from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.home import home_folder
from msn_deploy.core.model_info import QUANTISED
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe
from msn_deploy.data.names import NAMES
from msn_deploy.engine import BuildOptions
from msn_deploy.engine.device_script import engine_names

# What makes a network another one; how long it was trained does not.
_IDENTITY = ("net", "norm", "data", "input_shape", "width", "classifier", "fit", "init")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One model file: of which network, its norms folded or not, in which precision, for which batch.

    opset: None is that of `export`. engine: a TensorRT engine is built, `replicates` times.
    """

    recipe: Recipe
    fold: bool = True
    precision: str = "fp32"
    batch: int = 1
    opset: int | None = None
    engine: bool = False
    replicates: int = 1

    @property
    def data(self) -> str | None:
        """The images that the recipe names by a path, which a model file alone is not followed to."""
        return None if self.recipe.data in NAMES or self.recipe.gan else self.recipe.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One file to make. kind: "train", "export", "fp16", "int8", "fp8" or "build". source: what it is made from."""

    kind: str
    out: Path
    source: Path | None
    form: Form

    @property
    def text(self) -> str:
        """What is done, in a line."""
        recipe = self.form.recipe
        if self.kind == "train":
            return f"train {recipe.name} on {recipe.data}, {recipe.train.epochs} epochs"
        if self.kind == "export":
            return f"export {self.out.name}, {'folded' if self.form.fold else 'not folded'}"
        times = f", {self.form.replicates} times" if self.kind == "build" and self.form.replicates > 1 else ""
        return f"{'build' if self.kind == 'build' else f'make {self.kind.upper()}:'} {self.out.name}{times}"


def steps_of(form: Form, runs: Path | None) -> tuple[Step, ...]:
    """Return what has to be made for a form, in order; the last is the model. runs: None is the cache."""
    place = runs or home_folder() / "trained" / _digest(form.recipe)
    checkpoint = place / f"{form.recipe.name}.safetensors"
    stem = f"{form.recipe.name}{'' if form.fold else '.unfolded'}.b{form.batch}"
    onnx = place / "models" / f"{stem}.onnx"
    steps = [
        Step(kind="train", out=checkpoint, source=None, form=form),
        Step(kind="export", out=onnx, source=checkpoint, form=form),
    ]
    if form.precision != "fp32":
        typed = onnx.with_name(f"{stem}.{form.precision}.onnx")
        steps.append(Step(kind=form.precision, out=typed, source=onnx, form=form))
    if form.engine:
        engine = onnx.with_name(f"{stem}.{form.precision}.engine")
        steps.append(Step(kind="build", out=engine, source=steps[-1].out, form=form))
    return tuple(steps)


def steps_for(forms: Sequence[Form], runs: Path | None) -> list[Step]:
    """Return the steps of several forms, in order, what they share once."""
    return list({step.out: step for form in forms for step in steps_of(form, runs)}.values())


def files_of(step: Step) -> list[Path]:
    """Return all files of the last step of a form: the model and its replicates."""
    count = step.form.replicates if step.kind == "build" else 1
    return [step.out.with_name(name) for name in engine_names(step.out, count)]


def is_done(step: Step) -> bool:
    """Whether the file is there and made from what its source is now. Imports neither torch nor onnx.

    Raises InputError for a checkpoint of the right name that is of another network.
    """
    if step.kind == "train":
        return _is_trained(step)
    assert step.source is not None
    if not step.source.is_file():
        return False
    made_from, form = sha256_of(step.source), step.form
    wanted = {"opset": form.opset, "batch": form.batch, "fold": form.fold} if step.kind == "export" else {}
    for path in files_of(step):
        try:
            sidecar = read_sidecar(path)
            fits = sidecar.sha256 == sha256_of(path) and sidecar.versions.get("msn-deploy") == __version__
        except InputError:  # no file, or no sidecar
            return False
        if not fits or made_from not in [parent.sha256 for parent in sidecar.parents]:
            return False
        if any(sidecar.config.get(key) != value for key, value in wanted.items()):
            return False
    return True


def _is_trained(step: Step) -> bool:
    recipe, checkpoint = step.form.recipe, step.out
    if not checkpoint.is_file() or _state(step).is_file():  # the state goes with the last epoch
        return False
    recorded = read_sidecar(checkpoint).config.get("recipe")
    found = recorded if isinstance(recorded, dict) else {}
    wanted = recipe.to_dict()
    for key in _IDENTITY:
        if found.get(key) != wanted[key]:
            raise InputError(
                f"{checkpoint} is of another network: {key} {found.get(key)!r}, {wanted[key]!r} is wanted.\n"
                "Give another folder with `--runs`, or leave it out."
            )
    return True


def make(step: Step, *, threads: int | None = None, progress: Progress = silent) -> None:
    """Make the file of one step; its source is there. threads: of a training, whose weights depend on them.

    Raises what the stage raises.
    """
    form = step.form
    if step.kind == "train":
        torch = require("torch", step=f"training {form.recipe.name}")
        from msn_deploy.training import train

        if threads is not None:
            torch.set_num_threads(threads)
        train(form.recipe, out=step.out.parent, resume=_state(step).is_file(), progress=progress)
        return
    assert step.source is not None
    if step.kind == "export":
        from msn_deploy.pipeline.export import export_onnx

        export_onnx(str(step.source), step.out, batch=form.batch, opset=form.opset, fold=form.fold, data=form.data)
    elif step.kind in QUANTISED:
        from msn_deploy.pipeline.calibrate import calibrate

        calibrate(step.source, step.out, data=form.data, precision=step.kind, progress=progress)
    elif step.kind == "fp16":
        from msn_deploy.pipeline.fp16 import cast_to_fp16

        cast_to_fp16(step.source, step.out, data=form.data, progress=progress)
    else:
        from msn_deploy.pipeline.build import build_engine

        options = BuildOptions(batch=form.batch, replicates=form.replicates)
        build_engine(step.source, step.out, precision=form.precision, options=options, progress=progress)


def make_all(
    forms: Sequence[Form],
    runs: Path | None,
    *,
    threads: int | None = None,
    tell: Callable[[str], None],
    progress: Progress = silent,
) -> list[Path]:
    """Make what is not there and return the model of every form; `tell` gets a line before each step."""
    for step in steps_for(forms, runs):
        if not is_done(step):
            tell(step.text)
            make(step, threads=threads, progress=progress)
    return [steps_of(form, runs)[-1].out for form in forms]


def three_rows(recipe: Recipe, batch: int) -> dict[str, Form]:
    """Return the rows that tell what a norm costs: BN unfolded, BN folded, and the recipe's own norm folded.

    A recipe with BN, or none, is compared with MSN. Raises InputError for a GAN.
    """
    if recipe.gan is not None:
        raise InputError(f"{recipe.name} is a GAN; the three rows are of a classifier.")
    batch_norm = recipe.override(norm="bn")
    norm = recipe.norm if recipe.norm in ("msn", "msn-affine", "sn") else "msn"
    return {
        "BN unfolded": Form(recipe=batch_norm, fold=False, batch=batch),
        "BN folded": Form(recipe=batch_norm, batch=batch),
        f"{norm.upper().replace('AFFINE', 'affine')} folded": Form(recipe=recipe.override(norm=norm), batch=batch),
    }


def _state(step: Step) -> Path:
    return step.out.with_name(f"{step.form.recipe.name}.state.safetensors")


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
