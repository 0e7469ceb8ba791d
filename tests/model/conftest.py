"""Graphs and small ONNX models to work on."""

from graph_fixtures import *  # noqa: F403
from onnx_fixtures import *  # noqa: F403
