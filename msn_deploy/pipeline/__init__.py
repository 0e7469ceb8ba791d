"""The map: what each command does, composed from the stages. Paths in; files and a frozen result out.

train (training/loop.py) -> export -> calibrate | to FP16 -> build_engine -> evaluate, bench, infer; demo runs them all.
One file per step, so that `ls` shows the map; heavy packages are imported inside the functions that need them.
"""

from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.infer import infer

__all__ = ["bench", "build_engine", "calibrate", "evaluate", "export_onnx", "infer"]
