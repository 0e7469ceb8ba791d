"""From an ONNX file to an engine, and from either to logits: targets, builders and runners.

No torch here, and nothing heavy at import: onnx, onnxruntime and tensorrt are imported where they are used.
"""

from msn_deploy.engine.backends import Backend, must_build_elsewhere, needs_device, pick_backend
from msn_deploy.engine.build import BuildReport, build_engine_file
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.device_script import DeviceBuild, write_device_script
from msn_deploy.engine.dla import DlaPlan
from msn_deploy.engine.load import load_runner, open_runnable, runner_of
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.engine.plan import Plan
from msn_deploy.engine.proxy import ProxyCheck, check_with_rtx
from msn_deploy.engine.runner import PROVIDERS, Runner, run_images
from msn_deploy.machine.checks import Check, checks
from msn_deploy.machine.device import DeviceFacts, target_of, what_machine
from msn_deploy.machine.targets import TARGETS, Target, check_precision, find_target

__all__ = [
    "PROVIDERS",
    "TARGETS",
    "Backend",
    "BuildOptions",
    "BuildReport",
    "Check",
    "DeviceBuild",
    "DeviceFacts",
    "DlaPlan",
    "OrtRunner",
    "Plan",
    "ProxyCheck",
    "Runner",
    "Target",
    "build_engine_file",
    "check_precision",
    "check_with_rtx",
    "checks",
    "find_target",
    "load_runner",
    "must_build_elsewhere",
    "needs_device",
    "open_runnable",
    "pick_backend",
    "run_images",
    "runner_of",
    "target_of",
    "what_machine",
    "write_device_script",
]
