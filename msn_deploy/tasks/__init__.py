"""What a network's numbers mean: from outputs to answers, from answers and labels to a metric."""

from __future__ import annotations

from collections.abc import Callable

from msn_deploy.core.model_info import TaskName
from msn_deploy.tasks.classification import Classification
from msn_deploy.tasks.depth import Depth
from msn_deploy.tasks.detection import Detection
from msn_deploy.tasks.embedding import Embedding
from msn_deploy.tasks.multilabel import MultiLabel
from msn_deploy.tasks.pictures import Pictures
from msn_deploy.tasks.regression import Regression
from msn_deploy.tasks.segmentation import Segmentation
from msn_deploy.tasks.task import Given, Task

_MADE_BY: dict[TaskName, Callable[[Given], Task]] = {
    "classification": Classification,
    "detection": Detection,
    "depth": Depth,
    "embedding": Embedding,
    "image-to-image": Pictures,
    "multi-label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
}


def make_task(name: TaskName, given: Given) -> Task:
    """Return a task. Raises InputError for a network whose outputs are of another kind."""
    return _MADE_BY[name](given)
