"""Logits of a torch network for a large batch, in chunks, without touching its state."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@torch.inference_mode()
def logits_of(model: nn.Module, batch: NDArray[np.float32], *, chunk: int = 256) -> NDArray[np.float32]:
    """Return the model's output (N, classes) for a batch (N, C, H, W), in evaluation mode, on the model's device."""
    was_training = model.training
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    parts = [model(part.to(device)).float().cpu() for part in torch.from_numpy(batch).split(chunk)]
    model.train(was_training)
    return torch.cat(parts).numpy()
