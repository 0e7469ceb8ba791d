"""Small ONNX models to work on."""

from onnx_fixtures import *  # noqa: F403
