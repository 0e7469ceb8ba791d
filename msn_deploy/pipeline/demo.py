"""`demo`: the whole chain on real data, a network with MSN beside its BatchNorm twin, every stage measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msn_deploy.bench import BenchResult, MeasureOptions
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.pipeline.bench import bench, write_html, write_json
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.calibrate import CalibrationOptions
from msn_deploy.pipeline.evaluate import Evaluation, evaluate
from msn_deploy.pipeline.export import export_onnx

_TWINS = {"BN": "bn", "MSN": "msn"}
_INT8_MAY_LOSE = 0.01
_ARM = {"ONNX unfolded": "unfolded", "ONNX folded": "folded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the table: a network at one stage. Bytes of the file; None where the stage has no such number.

    engine_weight_bytes: weight memory that the engine builder reports. median_ms: ONNX Runtime on the CPU, batch 1, of
    the FP32 files: FP16 and INT8 ones are laid out for TensorRT, the CPU would emulate them.
    """

    network: str
    stage: str
    accuracy: float
    bytes: int
    engine_weight_bytes: int | None = None
    median_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """All stages of both networks, the latency comparison, and where everything lies."""

    out: Path
    stages: tuple[Stage, ...]
    result: BenchResult


def demo(
    out: Path,
    recipe: str = "vgg7_msn",
    *,
    data: str | None = None,
    epochs: int | None = None,
    seconds: float = 5.0,
    tell: Callable[[str], None],
    progress: Progress = silent,
) -> DemoResult:
    """Run the chain into `out`; `tell` gets a line before each step.

    recipe: of a classifier; its norm is BN, then MSN. data, epochs: in place of the recipe's.
    Raises InputError (exit 2) for a recipe of another task, GateError (exit 1) if folding changes a prediction on the
    test split or INT8 loses more than a point of accuracy, and whatever the steps raise.
    """
    chosen = load_recipe(recipe).override(data=data, epochs=epochs)
    if chosen.gan is not None or chosen.task != "classification":
        raise InputError(f"the demo compares classifiers, and {recipe} is not one.\n`msn-deploy recipes` lists some.")
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "tensorrt_rtx"):
        require(package, step="demo")
    stages: list[Stage] = []
    files: list[Path] = []
    twins = {network: chosen.override(norm=norm) for network, norm in _TWINS.items()}
    for network, twin in twins.items():
        stages += _one_network(network, twin, out, files, tell=tell, progress=progress)
    arms = {
        out / f"{twins['BN'].name}.unfolded.onnx": "BN unfolded",
        out / f"{twins['BN'].name}.onnx": "BN folded",
        out / f"{twins['MSN'].name}.onnx": "MSN folded",
    }
    tell(f"measuring {len(arms)} ONNX files in interleaved blocks")
    result = bench(list(arms), options=MeasureOptions(seconds=seconds), names=arms, progress=progress)
    medians = {arm.name: arm.median_ms for arm in result.arms}
    timed = tuple(replace(row, median_ms=medians.get(f"{row.network} {_ARM.get(row.stage)}")) for row in stages)
    write_json(result, out / "bench.json", list(arms))
    rows = [asdict(row) for row in timed]
    title = f"{chosen.net} on {chosen.data}: MSN beside BatchNorm"
    write_html(result, out / "report.html", files, title=title, stages=rows)
    return DemoResult(out=out, stages=timed, result=result)


def _one_network(
    network: str, recipe: Recipe, out: Path, files: list[Path], *, tell: Callable[[str], None], progress: Progress
) -> list[Stage]:  # fmt: skip
    """Make one network's files, which are appended to `files`, and return its rows."""
    from msn_deploy.training import train

    length = f"{recipe.train.epochs} epoch{'s' * (recipe.train.epochs != 1)}"
    tell(f"{network}: training {recipe.name} for {length} on {recipe.data}")
    checkpoint = train(recipe, out=out, progress=progress).checkpoint
    trained = evaluate(checkpoint, data=recipe.data)
    rows = [_stage(network, "checkpoint", checkpoint, trained)]

    onnx = checkpoint.with_suffix(".onnx")
    if recipe.norm == "bn":
        unfolded = checkpoint.with_suffix(".unfolded.onnx")
        tell(f"{network}: exporting, unfolded and folded")
        export_onnx(str(checkpoint), unfolded, fold=False, data=recipe.data)
        files.append(unfolded)
        rows.append(_stage(network, "ONNX unfolded", unfolded, _same(trained, evaluate(unfolded, data=recipe.data))))
    else:
        tell(f"{network}: exporting, folded")
    export_onnx(str(checkpoint), onnx, data=recipe.data)
    files += [checkpoint, onnx]
    folded = _same(trained, evaluate(onnx, data=recipe.data))
    tell(f"{network}: building engines in FP32, FP16 and INT8 (calibrating on training images)")
    for precision, stage in (("fp32", "ONNX folded"), ("fp16", "FP16"), ("int8", "INT8")):
        engine = checkpoint.with_suffix(f".{precision}.engine")
        calibration = None if precision == "fp32" else CalibrationOptions(data=recipe.data)
        built = build_engine(onnx, engine, precision=precision, calibration=calibration, progress=progress)
        files += [engine] if built.onnx == onnx else [built.onnx, engine]
        evaluation = folded if precision == "fp32" else evaluate(built.onnx, data=recipe.data)
        weights = built.engine.weight_memory_bytes if built.engine else None
        rows.append(_stage(network, stage, built.onnx, evaluation, weights))
    lost = folded.value - rows[-1].accuracy
    if lost > _INT8_MAY_LOSE:
        raise GateError(
            f"{network}: INT8 loses {lost:.2%} of accuracy, at most {_INT8_MAY_LOSE:.0%} is allowed.\n"
            "Calibrate on more images, or with `--method minmax`."
        )
    return rows


def _stage(network: str, stage: str, file: Path, evaluation: Evaluation, weights: int | None = None) -> Stage:
    return Stage(
        network=network,
        stage=stage,
        accuracy=evaluation.value,
        bytes=file.stat().st_size,
        engine_weight_bytes=weights,
    )


def _same(before: Evaluation, after: Evaluation) -> Evaluation:
    """Return `after` if it predicts what `before` predicts, image by image; raise GateError otherwise."""
    differ = sum(a != b for a, b in zip(before.predictions, after.predictions, strict=True))
    if differ:
        raise GateError(
            f"{after.model} predicts another class than {before.model} on {differ} of {after.samples} images."
        )
    return after
