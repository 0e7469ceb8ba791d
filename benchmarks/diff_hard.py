"""What `diff` shows of a network that INT8 ruins: VGG7 on digits, one channel of one layer 1,000 times the others.

    python benchmarks/diff_hard.py FP32.onnx [--out FILE]

FP32.onnx is VGG7 as `msn-deploy demo` exports it. The third convolution's first channel is multiplied by 1,000, and the
weights that read it are divided by it: in floats the network is the same. It is calibrated and compared with `diff`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnx import numpy_helper

from msn_deploy.core.artifacts import write_json
from msn_deploy.model.opened import open_model, with_info
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.diff import diff, write_plot

FACTOR = np.float32(1000)
HERE = Path(__file__).resolve().parent
RESULT, PICTURE = (
    HERE / "results" / "xeon-2-cores" / "diff-hard.json",
    HERE.parent / "docs" / "images" / "diff-hard.svg",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    model = open_model(options.onnx, step="benchmark")
    proto, info = model.proto, model.info
    assert info is not None
    loud, reader = [node for node in proto.graph.node if node.op_type == "Conv"][2:4]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, where, factor in (
        (loud.input[1], np.s_[0], FACTOR),
        (loud.input[2], np.s_[0], FACTOR),
        (reader.input[1], np.s_[:, 0], 1 / FACTOR),
    ):
        value = numpy_helper.to_array(tensors[name]).copy()
        value[where] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "hard.onnx", Path(folder) / "hard.int8.onnx"
        fp32.write_bytes(with_info(proto, info))
        calibrate(fp32, int8, data="digits", use_cache=False)
        report = diff(int8, fp32, data="digits")
        write_plot(report, Path(folder) / PICTURE.name)
        PICTURE.write_bytes((Path(folder) / PICTURE.name).read_bytes())
    told = asdict(report) | {"model": int8.name, "reference": fp32.name, "inside": int8.name}
    write_json(options.out, told | {"loud": loud.name, "reader": reader.name})
    for each in report.worst[:8]:
        assert each.own is not None
        sys.stderr.write(f"{each.layer:<20}{each.operator:<10}{each.own.sqnr_db:8.1f}{each.total.sqnr_db:8.1f}\n")
    sys.stderr.write(f"first off: {report.first_off and report.first_off.layer}; loud {loud.name}, {reader.name}\n")


if __name__ == "__main__":
    main()
