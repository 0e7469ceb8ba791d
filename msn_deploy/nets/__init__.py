"""The paper's networks, each with every norm."""

from msn_deploy.nets.registry import build_discriminator, build_net, sketch_net

__all__ = ["build_discriminator", "build_net", "sketch_net"]
