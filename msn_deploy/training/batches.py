"""From images in memory to the batches of an epoch: shuffled, augmented and normalised, a whole batch at a time.

All images stay on the device as bytes. A batch is one gather, in whose indices crop and flip are, and one pass that
normalises: no work per image, no worker processes, and torch's threads keep every core busy. Labels that are positions
move with their images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.core.recipes import TrainOptions
from msn_deploy.data import Split
from msn_deploy.training.labels import Labels, Moves, far_of, labels_of, moved, picked, to_device


def divided(split: Split, share: float) -> tuple[Split, Split]:
    """Divide a split into what is learned and a share (0 to 0.5) that is held out, drawn evenly over the whole."""
    held = np.zeros(len(split.labels), dtype=bool)
    held[np.linspace(0, len(held) - 1, round(share * len(held))).round().astype(np.int64)] = True
    parts = (np.flatnonzero(~held), np.flatnonzero(held))
    learned, out = (replace(split, images=split.images[at], labels=split.labels[at]) for at in parts)
    return learned, out


class Batches:
    """The batches of a training split; order and augmentation depend on seed and epoch alone.

    rank, ranks: this process takes its equal part of every batch; the parts of all processes make up the batch.
    Raises InputError if the images do not fill one batch, or the batch can't be divided.
    """

    def __init__(
        self,
        split: Split,
        prep: Preprocess,
        options: TrainOptions,
        *,
        device: torch.device,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if len(split.labels) < options.batch_size:
            raise InputError(
                f"{len(split.labels)} training images do not fill one batch of {options.batch_size}.\n"
                "Lower `--batch-size`."
            )
        if options.batch_size % ranks:
            raise InputError(
                f"a batch of {options.batch_size} can't be divided among {ranks} processes.\n"
                f"Choose a `--batch-size` that is a multiple of {ranks}."
            )
        self.options, self.rank, self.part = options, rank, options.batch_size // ranks
        self.images = torch.from_numpy(np.array(split.images)).to(device)  # (N, H, W, C)
        self.labels, self.count = to_device(labels_of(split, prep), device), len(split.labels)
        # In float32, and multiplied before added, as data.to_input does: the same bits.
        std = torch.tensor(prep.std, dtype=torch.float32)
        self.scale = (1 / (255 * std)).to(device)
        self.offset = (-torch.tensor(prep.mean, dtype=torch.float32) / std).to(device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch; images that do not fill a last one wait for the next epoch."""
        return self.count // self.options.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Labels]]:
        """Yield inputs float32 (part, C, H, W) and labels (part, ...) of each batch of an epoch, counted from 0."""
        rng = torch.Generator().manual_seed(self.options.seed * 100_003 + epoch)
        augment, (height, width) = self.options.augment, self.images.shape[1:3]
        order = torch.randperm(self.count, generator=rng).to(self.images.device)
        far, draws = far_of(augment, height, width), None
        if augment != "none":
            most = (2 * far[0] + 1, 2 * far[1] + 1, 2 if "flip" in augment else 1)
            each = [torch.randint(high, (self.count,), generator=rng) for high in most]
            draws = torch.stack(each).to(self.images.device)
        for batch in range(len(self)):
            begin = batch * self.options.batch_size + self.rank * self.part
            chosen = order[begin : begin + self.part]
            moves = None if draws is None else Moves(draws[0, chosen], draws[1, chosen], draws[2, chosen], far)
            pixels = self.images[chosen] if moves is None else moved(self.images[chosen], moves)
            x = pixels.float().mul_(self.scale).add_(self.offset).permute(0, 3, 1, 2)
            labels = picked(self.labels, chosen, moves, (height, width))
            yield x if self.options.channels_last else x.contiguous(), labels
