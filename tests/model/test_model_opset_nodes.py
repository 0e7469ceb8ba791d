"""ONNX's own tests of every operator: what is accepted in opset 17 gives the outputs that they store."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from msn_deploy.model.opset import DEFAULT_OPSET, lowered, opset_of

pytestmark = pytest.mark.slow
RANDOM = "bernoulli"  # what its tests store is one draw of many


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, where a test is about infinity
        found = load_model_tests(kind="node")
    whole = [case for case in found if case.model is not None]  # others are files, once all kinds were collected
    onnx_alone = [case for case in whole if {entry.domain for entry in case.model.opset_import} == {""}]
    return [case for case in onnx_alone if RANDOM not in case.name]


def outputs_of(model, feeds):
    """Run a model; None where ONNX Runtime has no kernel for it, or no way to take its input."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        arrays = [np.asarray(each) if isinstance(each, np.generic) else each for each in feeds]
        return session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception:
        return None


def agree(found, expected, case):
    for one, other in zip(found, expected, strict=False):
        if isinstance(other, list) or other is None:  # sequences and optionals: that it runs
            continue
        one, other = np.asarray(one), np.asarray(other)
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        near = {"rtol": max(case.rtol, 1e-5), "atol": max(case.atol, 1e-6), "equal_nan": True}
        if not (np.allclose(one, other, **near) if one.dtype.kind == "f" else np.array_equal(one, other)):
            return False
    return True


def pinned(model, feeds):
    """Return the model with all inputs but the first as constants, and what is left to feed."""
    model, left = copy.deepcopy(model), []
    kept = []
    for at, (given, value) in enumerate(zip(list(model.graph.input), feeds, strict=True)):
        wanted = given.type.tensor_type.elem_type
        plain = isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind in "fiub"
        tensor = numpy_helper.from_array(np.asarray(value), given.name) if at and plain else None
        if tensor is not None and tensor.data_type == wanted:
            model.graph.initializer.append(tensor)
        else:
            kept.append(given)
            left.append(value)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, left


def test_what_is_accepted_gives_what_is_stored():
    counts, wrong = Counter(), []
    for case in cases():
        if opset_of(case.model) <= DEFAULT_OPSET:
            continue
        feeds, expected = case.data_sets[0]
        forms = [(case.model, feeds)]
        if len(feeds) > 1:
            forms.append(pinned(case.model, feeds))
        for model, given in forms:
            made, blocked = lowered(copy.deepcopy(model), DEFAULT_OPSET)
            if blocked is not None:
                counts["refused"] += 1
                continue
            found = outputs_of(made, given)
            if found is not None and agree(found, expected, case):
                counts["equal"] += 1
                continue
            before = outputs_of(model, given)
            if before is None or not agree(before, expected, case):
                counts["not run, or another result already before"] += 1
            else:
                wrong.append(case.name)
    assert wrong == []
    assert counts["equal"] >= 1300, counts
