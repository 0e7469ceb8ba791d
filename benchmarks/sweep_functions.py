"""How each function of torch.nn.functional is called behind Conv-BN-ReLU; the rest with a reason.

`y` is never negative, `z` has both signs; defaults are shapes of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sweep_modules import BAG
from sweep_nets import named


def _grid(z: torch.Tensor) -> torch.Tensor:
    """Return where to look, from -1.2 to 1.2: (N, 8, 8, 2)."""
    return 1.2 * torch.tanh(z[:, :2]).permute(0, 2, 3, 1)


RECIPES: dict[str, Callable[..., Any]] = {
    # convolutions and linear maps
    "conv1d": lambda y, w=(6, 8, 3), b=(6,): F.conv1d(y, w, b, stride=2),
    "conv2d": lambda y, w=(6, 8, 3, 3): F.conv2d(y, w, padding=1),
    "conv2d same": lambda y, w=(8, 1, 4, 4): F.conv2d(y, w, padding="same", groups=8),
    "conv2d weight standardisation": lambda y, w=(6, 8, 3, 3): F.conv2d(
        y, (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    ),
    "conv3d": lambda y, w=(6, 8, 1, 3, 3), b=(6,): F.conv3d(y, w, b),
    "conv_transpose1d": lambda y, w=(8, 6, 4): F.conv_transpose1d(y, w, stride=2, padding=1),
    "conv_transpose2d": lambda y, w=(8, 3, 3, 3), b=(6,): F.conv_transpose2d(y, w, b, groups=2, dilation=2),
    "conv_transpose3d": lambda y, w=(8, 6, 2, 2, 2): F.conv_transpose3d(y, w, stride=2),
    "conv_tbc": lambda y, w=(3, 8, 6), b=(6,): F.conv_tbc(y.flatten(2).permute(2, 0, 1).contiguous(), w, b, 1),
    "linear": lambda y, w=(5, 8), b=(5,): F.linear(y.mean((2, 3)), w, b),
    "bilinear": lambda y, w=(5, 8, 8): F.bilinear(y, y.flip(3), w),
    "embedding": lambda y, w=(5, 6): F.embedding((y * 3).long().clamp(0, 4), w),
    # pools
    "avg_pool1d": lambda y: F.avg_pool1d(y, 3, 2, 1, count_include_pad=False),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 3, 2, 1, divisor_override=5),
    "avg_pool3d": lambda y: F.avg_pool3d(y, 2),
    "max_pool1d": lambda y: F.max_pool1d(y, 3, 2, 1),
    "max_pool1d_with_indices": lambda z: F.max_pool1d_with_indices(z, 2),
    "max_pool2d": lambda y: F.max_pool2d(y, (3, 2), (2, 1)),
    "max_pool2d_with_indices": lambda z: F.max_pool2d_with_indices(z, 2),
    "max_pool3d": lambda y: F.max_pool3d(y, 2),
    "max_pool3d_with_indices": lambda z: F.max_pool3d_with_indices(z, 2),
    "max_unpool1d": lambda z: F.max_unpool1d(*F.max_pool1d(z, 2, return_indices=True), 2),
    "max_unpool2d": lambda z: F.max_unpool2d(*F.max_pool2d(z, 2, return_indices=True), 2),
    "max_unpool3d": lambda z: F.max_unpool3d(*F.max_pool3d(z, 2, return_indices=True), 2),
    "lp_pool1d": lambda y: F.lp_pool1d(y, 2.0, 2),
    "lp_pool2d": lambda y: F.lp_pool2d(y, 3.0, 2),
    "lp_pool3d": lambda y: F.lp_pool3d(y, 2.0, 2),
    "adaptive_avg_pool1d": lambda y: F.adaptive_avg_pool1d(y, 1),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, (None, 1)),
    "adaptive_avg_pool3d": lambda y: F.adaptive_avg_pool3d(y, 1),
    "adaptive_max_pool1d": lambda y: F.adaptive_max_pool1d(y, 1),
    "adaptive_max_pool1d_with_indices": lambda z: F.adaptive_max_pool1d_with_indices(z, 4),
    "adaptive_max_pool2d": lambda y: F.adaptive_max_pool2d(y, 1),
    "adaptive_max_pool2d_with_indices": lambda z: F.adaptive_max_pool2d_with_indices(z, 2),
    "adaptive_max_pool3d": lambda y: F.adaptive_max_pool3d(y, 1),
    "adaptive_max_pool3d_with_indices": lambda z: F.adaptive_max_pool3d_with_indices(z, 2),
    # sampling
    "interpolate": lambda y: F.interpolate(y, scale_factor=2),
    "interpolate size": lambda y: F.interpolate(y, size=(13, 5)),
    "interpolate nearest-exact": lambda y: F.interpolate(y, size=(13, 5), mode="nearest-exact"),
    "interpolate bilinear": lambda y: F.interpolate(y, size=(13, 5), mode="bilinear"),
    "interpolate bilinear corners": lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=True),
    "interpolate bilinear antialias": lambda y: F.interpolate(y, size=(5, 4), mode="bilinear", antialias=True),
    "interpolate bicubic": lambda y: F.interpolate(y, scale_factor=2.0, mode="bicubic"),
    "interpolate bicubic antialias": lambda y: F.interpolate(y, size=(5, 6), mode="bicubic", antialias=True),
    "interpolate area": lambda y: F.interpolate(y, scale_factor=0.5, mode="area"),
    "interpolate linear": lambda y: F.interpolate(y.flatten(2), size=40, mode="linear"),
    "interpolate trilinear": lambda y: F.interpolate(y.unflatten(1, (4, 2)), scale_factor=2, mode="trilinear"),
    "interpolate recomputed": lambda y: F.interpolate(
        y, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True
    ),
    "upsample": lambda y: F.upsample(y, scale_factor=2, mode="nearest"),
    "upsample_bilinear": lambda y: F.upsample_bilinear(y, scale_factor=2),
    "upsample_nearest": lambda y: F.upsample_nearest(y, size=(11, 12)),
    "affine_grid": lambda z: F.affine_grid(z.mean(3)[:, :6, 0].reshape(2, 2, 3), [2, 3, 4, 5], align_corners=False),
    "grid_sample": lambda y, z: F.grid_sample(y, _grid(z), align_corners=False),
    "grid_sample corners": lambda y, z: F.grid_sample(y, _grid(z), align_corners=True),
    "grid_sample border": lambda y, z: F.grid_sample(y, _grid(z), padding_mode="border", align_corners=False),
    "grid_sample reflection": lambda y, z: F.grid_sample(y, _grid(z), padding_mode="reflection", align_corners=False),
    "grid_sample nearest": lambda y, z: F.grid_sample(y, _grid(z), mode="nearest", align_corners=False),
    "grid_sample bicubic": lambda y, z: F.grid_sample(y, _grid(z), mode="bicubic", align_corners=False),
    "pad": lambda y: F.pad(y, (1, 2)),
    "pad channels": lambda y: F.pad(y, (0, 0, 0, 0, 2, 3)),
    "pad value": lambda y: F.pad(y, (0, 1), value=float("-inf")).amax(3),
    "pad cropping": lambda y: F.pad(y, (-1, -1, -2, 1)),
    "pad reflect": lambda y: F.pad(y, (1, 2, 3, 4), mode="reflect"),
    "pad replicate": lambda y: F.pad(y, (1, 0, 0, 2), mode="replicate"),
    "pad circular": lambda y: F.pad(y, (1, 2, 0, 3), mode="circular"),
    "fold": lambda y: F.fold(y.reshape(2, 8, -1)[:, :, :25].contiguous(), (6, 6), 2),
    "unfold": lambda y: F.unfold(y, 2, stride=2, dilation=2),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "channel_shuffle": lambda y: F.channel_shuffle(y, 2),
    "native_channel_shuffle": lambda y: F.native_channel_shuffle(y, 4),
    # norms
    "batch_norm": lambda y, w=(8,), b=(8,): F.batch_norm(y, w / 4, b.square() + 0.3, w, b),
    "instance_norm": lambda y, w=(8,), b=(8,): F.instance_norm(y, weight=w, bias=b),
    "group_norm": lambda y, w=(8,), b=(8,): F.group_norm(y, 2, w, b),
    "layer_norm": lambda y, w=(8,): F.layer_norm(y, (8,), w),
    "rms_norm": lambda y, w=(8,): F.rms_norm(y, (8,), w, 1e-5),
    "local_response_norm": lambda y: F.local_response_norm(y, 4, alpha=0.2, beta=0.5),
    "normalize": lambda z: F.normalize(z, dim=1),
    "normalize l1": lambda z: F.normalize(z, p=1.0, dim=1),
    # activations
    **named(
        "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 rrelu "
        "selu sigmoid silu softplus softshrink softsign tanh tanhshrink",
        F,
        lambda f: lambda z: f(z),
    ),
    **named(
        "celu_ elu_ hardtanh_ leaky_relu_ relu_ rrelu_ selu_",
        F,
        lambda f: lambda z: f(z * 1.5),
    ),
    "gelu tanh": lambda z: F.gelu(z, approximate="tanh"),
    "celu alpha": lambda z: F.celu(z, 0.3),
    "hardtanh ints": lambda z: F.hardtanh(z, -1, 1),
    "threshold": lambda z: F.threshold(z, 0.2, -0.5),
    "threshold_": lambda z: F.threshold_(z * 1.5, 0.2, -0.5),
    "prelu": lambda z, w=(8,): F.prelu(z, w),
    "glu": lambda z: F.glu(z, 1),
    "glu last": lambda z: F.glu(z),
    "softmax": lambda z: F.softmax(z, 1),
    "softmax flat": lambda z: F.softmax(z.flatten(2), -1),
    "log_softmax": lambda z: F.log_softmax(z, 1),
    "softmin": lambda z: F.softmin(z, 2),
    **named(
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
        F,
        lambda f: lambda y: f(y, 0.4, False),
    ),
    # distances, attention, and the rest
    "cosine_similarity": lambda y, z: F.cosine_similarity(y, z, 1),
    "pairwise_distance": lambda y, z: F.pairwise_distance(y.mean((2, 3)), z.mean((2, 3))),
    "pdist": lambda z: F.pdist(z.flatten(1)),
    "one_hot": lambda z: F.one_hot(z.argmax(1), 8),
    "scaled_dot_product_attention": lambda y, z: F.scaled_dot_product_attention(z, z.flip(1), y),
    "scaled_dot_product_attention causal": lambda y, z: F.scaled_dot_product_attention(z, z, y, is_causal=True),
    "scaled_dot_product_attention mask": lambda y, z: F.scaled_dot_product_attention(z, z.flip(1), y, attn_mask=z > 0),
    "multi_head_attention_forward": lambda z, w=(24, 8), b=(24,), o=(8, 8): F.multi_head_attention_forward(
        *[z.flatten(2).permute(2, 0, 1)] * 3, 8, 2, w, b, None, None, False, 0.0, o, None, training=False
    )[0],
    # losses, which some networks return in place of a distance
    "mse_loss": lambda y, z: F.mse_loss(y, z),
    "l1_loss": lambda y, z: F.l1_loss(y, z, reduction="none"),
    "smooth_l1_loss": lambda y, z: F.smooth_l1_loss(y, z),
    "huber_loss": lambda y, z: F.huber_loss(y, z, delta=0.5),
    "binary_cross_entropy_with_logits": lambda y, z: F.binary_cross_entropy_with_logits(z, torch.sigmoid(y)),
    "binary_cross_entropy": lambda y, z: F.binary_cross_entropy(torch.sigmoid(z), torch.sigmoid(y)),
    "kl_div": lambda y, z: F.kl_div(F.log_softmax(z, 1), F.softmax(y, 1), reduction="batchmean"),
    "cross_entropy": lambda y, z: F.cross_entropy(z, y.argmax(1)),
    "nll_loss": lambda y, z: F.nll_loss(F.log_softmax(z, 1), y.argmax(1), reduction="none"),
    "soft_margin_loss": lambda y, z: F.soft_margin_loss(z, torch.sign(y - 0.5)),
    "poisson_nll_loss": lambda y, z: F.poisson_nll_loss(z, y),
    "gaussian_nll_loss": lambda y, z: F.gaussian_nll_loss(z, y, torch.exp(z)),
    "hinge_embedding_loss": lambda y, z: F.hinge_embedding_loss(z, torch.sign(y - 0.5)),
    "margin_ranking_loss": lambda y, z: F.margin_ranking_loss(z, y, torch.sign(y - 0.5)),
    "cosine_embedding_loss": lambda y, z: F.cosine_embedding_loss(
        z.mean((2, 3)), y.mean((2, 3)), torch.sign(z[:, 0, 0, 0])
    ),
    "triplet_margin_loss": lambda y, z: F.triplet_margin_loss(y, z, z.flip(1)),
    "triplet_margin_with_distance_loss": lambda y, z: F.triplet_margin_with_distance_loss(y, z, z.flip(1)),
    "multilabel_soft_margin_loss": lambda y, z: F.multilabel_soft_margin_loss(z, (y > 0.3).to(z.dtype)),
    "multi_margin_loss": lambda y, z: F.multi_margin_loss(z.mean((2, 3)), y.mean((2, 3)).argmax(1)),
}

WITHOUT: dict[str, str] = {
    "embedding_bag": BAG,
    "ctc_loss|multilabel_margin_loss|linear_cross_entropy": "a loss over labels: it is part of training",
    "fractional_max_pool.*": "it draws random pools at every call",
    "gumbel_softmax": "it draws random numbers at every call",
    "grouped_mm|scaled_mm|scaled_grouped_mm": "a kernel of GPUs that torch does not run on a CPU",
}
