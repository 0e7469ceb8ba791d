"""Graphs to work on."""

from graph_fixtures import *  # noqa: F403
