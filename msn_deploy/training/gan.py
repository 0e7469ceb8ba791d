"""Training a GAN: a recipe and its images to a generator, epoch after epoch, each saved before the next.

Beside the generator's checkpoint lie the discriminator (`NAME.discriminator.safetensors`, weights alone), the history
(`NAME.history.jsonl`), a grid of samples of every epoch (`NAME.epoch-001.png`, ...) and, until the last epoch is done,
the state that `resume` continues from. Losses: those of Goodfellow et al., 2014, the generator's not saturating.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.recipes import Recipe
from msn_deploy.data import Split, load_split
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets import build_discriminator, build_net
from msn_deploy.nets.dcgan import latents
from msn_deploy.training.batches import Batches
from msn_deploy.training.checkpoint import remove_state, write_tensors
from msn_deploy.training.distributed import World, join
from msn_deploy.training.loop import Run, TrainResult
from msn_deploy.training.optimizer import learning_rate

_TILES = 8  # of a grid's side


def train_gan(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "auto",
    limit_train: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train a recipe that has a [gan] section and save `out/NAME.safetensors`, the generator, after every epoch.

    Arguments, promises and errors are those of `train`; several processes (torchrun) are an InputError.
    """
    training = load_split(recipe.data, "train", **recipe.image_size).first(limit_train)
    with join(device) as world:
        if world.size > 1:
            raise InputError(
                f"a GAN is trained by one process, torchrun started {world.size}.\nStart it without torchrun."
            )
        run = _Training(recipe, training, out=out, limit_train=limit_train, world=world)
        run.start(resume=resume)
        with run.claimed(tensorboard=tensorboard):
            run.fit(progress)
    return run.result()


class _Training(Run):
    """The moving parts of one training."""

    def __init__(self, recipe: Recipe, training: Split, *, out: Path, limit_train: int | None, world: World) -> None:
        assert recipe.gan is not None
        # No `data`: what a generator takes are random numbers, and export and bench draw them.
        info = ModelInfo(net=recipe.net, norm=recipe.norm, recipe=recipe.to_dict())
        super().__init__(recipe, [training.as_parent()], info=info, out=out, limit_train=limit_train, world=world)
        self.latent = recipe.gan.latent
        self.generator = self.placed(build_net(recipe, classes=0))
        self.discriminator = self.placed(build_discriminator(recipe))
        half = (0.5,) * recipe.input_shape[1]  # images from -1 to 1, as tanh gives them
        prep = Preprocess(**recipe.image_size, mean=half, std=half)
        self.batches = Batches(training, prep, recipe.train, device=world.device)
        betas = (recipe.gan.beta1, 0.999)
        self.optimizers = [
            torch.optim.Adam(model.parameters(), lr=recipe.train.learning_rate, betas=betas)
            for model in (self.generator, self.discriminator)
        ]
        self.measured = ("d_loss", "g_loss")
        self.parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "g_optimizer": self.optimizers[0],
            "d_optimizer": self.optimizers[1],
        }
        self.fixed = latents(_TILES**2, self.latent, torch.Generator().manual_seed(0)).to(world.device)

    def fit(self, progress: Progress) -> None:
        options = self.recipe.train
        if self.history:  # resumed: killed between the state and what belongs to it?
            self._publish()
        while len(self.history) < options.epochs:
            epoch, began = len(self.history), time.perf_counter()
            played = self._epoch(epoch, progress)
            self._require_finite(epoch, played)
            entry = {"epoch": epoch + 1, **played, **self._judged(epoch)}
            self.history.append({**entry, "seconds": round(time.perf_counter() - began, 3)})
            losses = (f"{key.replace('_', ' ')} {played[key]:.3f}" for key in ("d_loss", "g_loss"))
            self.tell(*losses, f"{self.history[-1]['seconds']:.1f} s")
            if epoch + 1 < options.epochs:
                self.save()
            self._publish()
        remove_state(self.state)

    def _publish(self) -> None:
        name, entry = self.recipe.name, self.history[-1]
        self.info = replace(self.info, metrics={key: entry[key] for key in ("epoch", "d_loss", "g_loss")})
        self.publish_history()
        self.publish(self.out / f"{name}.epoch-{entry['epoch']:03}.png", self._write_grid, kind="samples")
        judge = self.out / f"{name}.discriminator.safetensors"
        write_tensors(judge, self.discriminator.state_dict(), {}, parents=self.parents, config=self.config)
        self.publish_network(self.generator, self.info)

    def _epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        """Run one pass over the images; return the mean losses, and mean and deviation of both kinds' logits."""
        options, steps, device = self.recipe.train, len(self.batches), self.fixed.device
        rng = torch.Generator().manual_seed(options.seed * 100_003 + epoch + 2**31)
        self.generator.train(), self.discriminator.train()
        losses, logits = torch.zeros(2, device=device), torch.zeros(4, device=device)
        for at, (real, _) in enumerate(self.batches.epoch(epoch), start=epoch * steps):
            rate = learning_rate(at / (options.epochs * steps), options)
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.amp):
                fake = self.generator(latents(len(real), self.latent, rng).to(device))
                of_real, of_fake = self.discriminator(real).float(), self.discriminator(fake.detach()).float()
            d_loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
            self._step(1, d_loss)
            self.discriminator.requires_grad_(False)  # the generator's step needs no gradient of its weights
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.amp):
                g_loss = F.softplus(-self.discriminator(fake).float()).mean()
            self._step(0, g_loss)
            self.discriminator.requires_grad_(True)
            losses += torch.stack([d_loss.detach(), g_loss.detach()])
            kinds = (of_real.detach(), of_fake.detach())
            logits += torch.stack([kinds[0].mean(), kinds[0].std(), kinds[1].mean(), kinds[1].std()])
            progress(at + 1, options.epochs * steps, f"{self.recipe.name} epoch {epoch + 1}/{options.epochs}")
        names = ("d_loss", "g_loss", "real_logit", "real_logit_std", "fake_logit", "fake_logit_std")
        return dict(zip(names, (torch.cat([losses, logits]) / steps).tolist(), strict=True))

    def _require_finite(self, epoch: int, played: dict[str, float]) -> None:
        """Raise GateError if an epoch diverged; its last step can ruin weights behind a loss that is still finite."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        ruined = [
            name
            for name, model in networks.items()
            if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
        ]
        if ruined or not all(map(math.isfinite, played.values())):
            weights = f", weights of the {' and the '.join(ruined)} that are not numbers" if ruined else ""
            raise GateError(
                f"the training diverged in epoch {epoch + 1}: losses {played['d_loss']:.3g} and {played['g_loss']:.3g}"
                f"{weights}.\n"
                f"Lower the learning rate, for example `--lr {self.recipe.train.learning_rate / 3:.2g}`."
            )

    def _step(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        torch.autograd.backward(loss)
        self.optimizers[which].step()

    @torch.no_grad()
    def _judged(self, epoch: int) -> dict[str, list[float]]:
        """Return numbers per normalised layer of the discriminator, in its order.

        singular: the largest singular value of the weight. sigma: the tracked one as a share of it. drift, on real
        images: |mean| of a channel before the activation over its deviation, averaged over the channels.
        """
        layers = [module for module in self.discriminator.modules() if isinstance(module, SpectralLayer)]
        drift: list[float] = []

        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            each = output.float().transpose(0, 1).flatten(1)
            drift.append(float((each.mean(1).abs() / each.std(1).clamp_min(1e-12)).mean()))

        hooks = [layer.register_forward_hook(look) for layer in layers]
        self.discriminator.eval()
        self.discriminator(next(self.batches.epoch(epoch))[0])
        for hook in hooks:
            hook.remove()
        singular = [float(torch.linalg.matrix_norm(layer._matrix(), 2).clamp_min(1e-12)) for layer in layers]
        sigma = [float(layer.sigma()) / true for layer, true in zip(layers, singular, strict=True)]
        numbers = {"singular": singular, "sigma": sigma, "drift": drift}
        return {name: [round(value, 6) for value in each] for name, each in numbers.items()}

    def _write_grid(self, path: Path) -> None:
        images = generated(self.generator, self.fixed)
        _, height, width, channels = images.shape
        tiles = images.reshape(_TILES, _TILES, height, width, channels).transpose(0, 2, 1, 3, 4)
        picture = tiles.reshape(_TILES * height, _TILES * width, channels)
        Image.fromarray(picture.squeeze(-1) if channels == 1 else picture).save(path, format="PNG", optimize=True)


@torch.no_grad()
def generated(generator: Callable[[Tensor], Tensor], inputs: Tensor, *, chunk: int = 256) -> np.ndarray:
    """Return the images uint8 (N, H, W, C) that a generator makes of latents (N, latent, 1, 1), in evaluation mode."""
    if isinstance(generator, nn.Module):
        generator.eval()
    parts = [generator(part).float().cpu() for part in torch.split(inputs, chunk)]
    images = ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()
