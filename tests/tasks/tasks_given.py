"""What tests make tasks of."""

import numpy as np

from msn_deploy.core.model_info import TensorSpec
from msn_deploy.tasks.task import Given


def given(classes=(), *, named=False, graph="logits", outputs=("y",), frame=None, **reading):
    return Given(
        model="net",
        classes=tuple(classes),
        named=named,
        reading=reading,
        outputs=tuple(TensorSpec(name, "float32", None) for name in outputs),
        endings=(graph,) * len(outputs),
        frame=frame,
    )


def spoiled(shape, at, value=np.nan):
    made = np.zeros(shape, np.float32)
    made[at] = value
    return made
