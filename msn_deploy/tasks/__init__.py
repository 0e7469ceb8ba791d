"""What a network's numbers mean: from outputs to answers, from answers and labels to a metric."""

from __future__ import annotations

from collections.abc import Callable

from msn_deploy.core.model_info import TaskName
from msn_deploy.tasks.classification import Classification
from msn_deploy.tasks.detection import Detection
from msn_deploy.tasks.task import Given, Task

_MADE_BY: dict[TaskName, Callable[[Given], Task]] = {
    "classification": Classification,
    "detection": Detection,
}


def make_task(name: TaskName, given: Given) -> Task:
    """Return a task. Raises InputError for a network whose outputs are of another kind."""
    return _MADE_BY[name](given)
