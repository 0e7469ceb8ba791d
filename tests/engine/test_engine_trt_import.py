"""Importing the TensorRT runner brings nothing heavy along."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_runner_loads_nothing_heavy():
    code = (
        "import sys, msn_deploy.engine.trt, msn_deploy.engine.preflight; "
        "heavy = {'numpy', 'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'cuda'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
