"""A study: one recipe trained with several norms, and what their trainings look like from inside, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import Artifact, Parent, parent_of, publish_together
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import NORMS
from msn_deploy.core.optional import require
from msn_deploy.core.partials import claimed
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe
from msn_deploy.data import load_split, to_input
from msn_deploy.report.curves import CURVE_VERSIONS, line_chart
from msn_deploy.report.study import LipschitzBounds, Studied, Study, judge_claims, panels_of, study_html

SCHEMA = 1
_LOOKED_AT = 32  # test images


def study(
    recipe: Recipe,
    norms: Sequence[str],
    *,
    out: Path,
    device: str = "auto",
    limit_train: int | None = None,
    every: int = 5,
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> Study:
    """Train the recipe with each norm, watched; write `study.json`, `.html` and `.png` beside the checkpoints.

    every: steps from one look to the next; the training itself is not changed by being looked at. tell gets a line
    before each training. Raises what `train` raises, and InputError for norms that are unknown or named twice.
    """
    # Late: a device has no torch.
    from msn_deploy.training.checkpoint import TRAIN_VERSIONS
    from msn_deploy.training.dynamics import Dynamics
    from msn_deploy.training.loop import train

    require("matplotlib", step="study")
    if recipe.gan is not None:
        raise InputError(f"{recipe.name} is a GAN; `study` looks at classifiers.\nIts history has its statistics.")
    if recipe.task != "classification":
        raise InputError(
            f"{recipe.name} is for {recipe.task}; `study` looks at classifiers.\nCompare checkpoints with `eval`."
        )
    if recipe.train.freeze != "none":
        raise InputError(
            f"`study` watches every layer learn, and train.freeze is {recipe.train.freeze!r}.\nLeave it out."
        )
    for norm in norms:
        if norm not in NORMS:
            raise InputError(f"unknown norm {norm!r}{did_you_mean(norm, NORMS)}")
    if not norms or len(set(norms)) < len(norms):
        raise InputError(f"--norms must name different norms, got {','.join(norms) or 'none'}.")
    with claimed(out / "study.json"):
        found: dict[str, Studied] = {}
        parents: list[Parent] = []
        for norm in norms:
            chosen = recipe.override(norm=norm)
            epochs = chosen.train.epochs
            tell(f"training {chosen.name} for {epochs} epoch{'s' * (epochs != 1)} on {chosen.data}")
            probe = Dynamics(every=every)
            trained = train(chosen, out=out, device=device, limit_train=limit_train, progress=progress, observer=probe)
            probe.finish()
            if not probe.windows:
                raise InputError(
                    f"{chosen.name} trains too few steps for a study, or has no convolution.\n"
                    "Use more images or epochs, or a smaller `--every`."
                )
            parents.append(parent_of(trained.checkpoint, role=f"checkpoint:{norm}"))
            log = trained.checkpoint.with_suffix(".history.jsonl")
            parents.append(parent_of(log, role=f"history:{norm}"))
            found[norm] = Studied(
                parameters=probe.parameters,
                layers=probe.layers,
                windows=probe.windows,
                history=trained.history,
                lipschitz=_bounds(trained.checkpoint, chosen),
            )
        first = recipe.override(norm=norms[0]).to_dict()
        result = Study(
            recipe=first,
            norms=found,
            claims=judge_claims(found),
            page=out / "study.html",
            result=out / "study.json",
        )
        config = {"recipe": first, "norms": list(norms), "every": every, "limit_train": limit_train, "device": device}
        versions = (*TRAIN_VERSIONS, *CURVE_VERSIONS)
        picture = line_chart(panels_of(result))
        publish_together(
            *(
                Artifact(path=path, content=content, kind=kind, parents=parents, versions=versions, config=config)
                for path, kind, content in (
                    (result.result, "study", to_json(result).encode()),
                    (out / "study.png", "curves", picture),
                    (result.page, "report", study_html(result).encode()),
                )
            )
        )
        return result


def _bounds(checkpoint: Path, recipe: Recipe) -> LipschitzBounds:
    """Return the bounds of a trained network at its first test images."""
    import torch  # late, as above

    from msn_deploy.msn import lipschitz
    from msn_deploy.training.checkpoint import load_checkpoint

    model, info = load_checkpoint(checkpoint)
    assert info.preprocess is not None
    images = load_split(recipe.data, "test", **recipe.image_size).first(_LOOKED_AT).images
    found = lipschitz(model, torch.from_numpy(to_input(images, info.preprocess)))
    return LipschitzBounds(lower=found.lower, upper=found.upper, upper_by_matrix=found.upper_by_matrix, why=found.why)


def to_json(result: Study) -> str:
    """Return the whole study as JSON text, numbers to six significant digits."""
    norms = {norm: _short(asdict(found)) for norm, found in result.norms.items()}
    claims = [asdict(each) for each in result.claims]
    return json.dumps({"schema": SCHEMA, "recipe": result.recipe, "claims": claims, "norms": norms}) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
