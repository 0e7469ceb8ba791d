"""From files to arrays, and from arrays to a network's input. No torch, so that a device can use it."""

from msn_deploy.data.preprocess import to_input
from msn_deploy.data.sources import Split, load_split

__all__ = ["Split", "load_split", "to_input"]
