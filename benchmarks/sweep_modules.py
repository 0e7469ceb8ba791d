"""How each module of torch.nn is made and called behind Conv-BN-ReLU; the rest with a reason."""

from __future__ import annotations

import torch
from sweep_nets import M, tokens
from torch import nn

RECIPES: dict[str, M] = {
    # convolutions and linear maps
    "Conv1d": M(lambda: nn.Conv1d(8, 6, 3, stride=2, padding=1)),
    "Conv1d same": M(lambda: nn.Conv1d(8, 6, 4, padding="same", bias=False)),
    "Conv2d": M(lambda: nn.Conv2d(8, 6, 3, padding=1)),
    "Conv2d grouped": M(lambda: nn.Conv2d(8, 8, 3, groups=4, dilation=2)),
    "Conv2d depthwise": M(lambda: nn.Conv2d(8, 16, (3, 5), groups=8, stride=(2, 1), bias=False)),
    "Conv2d same": M(lambda: nn.Conv2d(8, 6, 4, padding="same")),
    "Conv2d same dilated": M(lambda: nn.Conv2d(8, 6, 3, padding="same", dilation=2)),
    "Conv2d reflect": M(lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")),
    "Conv2d replicate": M(lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="replicate")),
    "Conv2d circular": M(lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")),
    "Conv3d": M(lambda: nn.Conv3d(8, 6, 3, padding=(1, 0, 1))),
    "ConvTranspose1d": M(lambda: nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)),
    "ConvTranspose2d": M(lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)),
    "ConvTranspose2d grouped": M(lambda: nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4, bias=False)),
    "ConvTranspose3d": M(lambda: nn.ConvTranspose3d(8, 6, 2, stride=2)),
    "Linear": M(lambda: nn.Linear(8, 5)),
    "Linear tokens": M(lambda: nn.Linear(8, 5, bias=False), tokens),
    "Bilinear": M(lambda: nn.Bilinear(8, 8, 5), lambda m, y: m(y, y.flip(3))),
    "LazyConv2d": M(lambda: _made(nn.LazyConv2d(6, 3), torch.zeros(1, 8, 8, 8))),
    "LazyConv1d": M(lambda: _made(nn.LazyConv1d(6, 3), torch.zeros(1, 8, 8))),
    "LazyLinear": M(lambda: _made(nn.LazyLinear(5), torch.zeros(1, 8))),
    "LazyBatchNorm2d": M(lambda: _made(nn.LazyBatchNorm2d(), torch.zeros(2, 8, 8, 8))),
    # pools
    "AvgPool1d": M(lambda: nn.AvgPool1d(3, stride=2, padding=1)),
    "AvgPool2d": M(lambda: nn.AvgPool2d(2)),
    "AvgPool2d padded": M(lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)),
    "AvgPool2d ceil": M(lambda: nn.AvgPool2d(3, stride=2, ceil_mode=True)),
    "AvgPool2d ceil padded": M(lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True)),
    "AvgPool3d": M(lambda: nn.AvgPool3d(2, stride=(2, 2, 1))),
    "MaxPool1d": M(lambda: nn.MaxPool1d(3, stride=2)),
    "MaxPool2d": M(lambda: nn.MaxPool2d(3, stride=2, padding=1)),
    "MaxPool2d ceil": M(lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True)),
    "MaxPool2d dilated": M(lambda: nn.MaxPool2d(2, stride=1, dilation=2)),
    "MaxPool3d": M(lambda: nn.MaxPool3d(2)),
    "LPPool1d": M(lambda: nn.LPPool1d(2, 3, stride=2)),
    "LPPool2d": M(lambda: nn.LPPool2d(2, 2)),
    "LPPool3d": M(lambda: nn.LPPool3d(2, 2)),
    "AdaptiveAvgPool1d": M(lambda: nn.AdaptiveAvgPool1d(4)),
    "AdaptiveAvgPool1d uneven": M(lambda: nn.AdaptiveAvgPool1d(5)),
    "AdaptiveAvgPool2d": M(lambda: nn.AdaptiveAvgPool2d(1)),
    "AdaptiveAvgPool2d grid": M(lambda: nn.AdaptiveAvgPool2d((4, 2))),
    "AdaptiveAvgPool2d uneven": M(lambda: nn.AdaptiveAvgPool2d(3)),
    "AdaptiveAvgPool3d": M(lambda: nn.AdaptiveAvgPool3d((2, 3, 1))),
    "AdaptiveMaxPool1d": M(lambda: nn.AdaptiveMaxPool1d(4)),
    "AdaptiveMaxPool2d": M(lambda: nn.AdaptiveMaxPool2d(2)),
    "AdaptiveMaxPool3d": M(lambda: nn.AdaptiveMaxPool3d(2)),
    "MaxUnpool1d": M(lambda: nn.MaxUnpool1d(2), lambda m, y: m(*torch.max_pool1d_with_indices(y + 1, 2))),
    "MaxUnpool2d": M(lambda: nn.MaxUnpool2d(2), lambda m, y: m(*nn.functional.max_pool2d(y, 2, return_indices=True))),
    "MaxUnpool3d": M(
        lambda: nn.MaxUnpool3d(2), lambda m, y: m(*nn.functional.max_pool3d(y + 1, 2, return_indices=True))
    ),
    "FractionalMaxPool2d": M(lambda: nn.FractionalMaxPool2d(2, output_size=4, _random_samples=torch.rand(2, 8, 2))),
    # pads
    "ZeroPad1d": M(lambda: nn.ZeroPad1d((2, 1))),
    "ZeroPad2d": M(lambda: nn.ZeroPad2d((0, 1, 0, 1))),
    "ZeroPad3d": M(lambda: nn.ZeroPad3d(1)),
    "ConstantPad1d": M(lambda: nn.ConstantPad1d(1, 0.5)),
    "ConstantPad2d": M(lambda: nn.ConstantPad2d((1, 0, 2, 1), -1.5)),
    "ConstantPad2d cropping": M(lambda: nn.ConstantPad2d((-1, 2, 0, -2), 0.0)),
    "ConstantPad3d": M(lambda: nn.ConstantPad3d(1, 2.0)),
    "ReflectionPad1d": M(lambda: nn.ReflectionPad1d((2, 1))),
    "ReflectionPad2d": M(lambda: nn.ReflectionPad2d((1, 2, 3, 0))),
    "ReflectionPad3d": M(lambda: nn.ReflectionPad3d(1)),
    "ReplicationPad1d": M(lambda: nn.ReplicationPad1d(2)),
    "ReplicationPad2d": M(lambda: nn.ReplicationPad2d((1, 2, 0, 3))),
    "ReplicationPad3d": M(lambda: nn.ReplicationPad3d(1)),
    "CircularPad1d": M(lambda: nn.CircularPad1d((2, 1))),
    "CircularPad2d": M(lambda: nn.CircularPad2d((1, 2, 3, 0))),
    "CircularPad3d": M(lambda: nn.CircularPad3d(1)),
    # norms
    "BatchNorm1d": M(lambda: nn.BatchNorm1d(8)),
    "BatchNorm1d flat": M(lambda: nn.BatchNorm1d(8, eps=1e-3), lambda m, y: m(y.mean(2))),
    "BatchNorm2d": M(lambda: nn.BatchNorm2d(8)),
    "BatchNorm2d not affine": M(lambda: nn.BatchNorm2d(8, affine=False)),
    "BatchNorm3d": M(lambda: nn.BatchNorm3d(8)),
    "SyncBatchNorm": M(lambda: nn.SyncBatchNorm(8)),
    "InstanceNorm1d": M(lambda: nn.InstanceNorm1d(8)),
    "InstanceNorm2d": M(lambda: nn.InstanceNorm2d(8, affine=True)),
    "InstanceNorm2d tracked": M(lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "InstanceNorm3d": M(lambda: nn.InstanceNorm3d(8)),
    "GroupNorm": M(lambda: nn.GroupNorm(4, 8)),
    "LayerNorm": M(lambda: nn.LayerNorm(8), tokens),
    "LayerNorm picture": M(lambda: nn.LayerNorm((8, 8, 8), eps=1e-6)),
    "RMSNorm": M(lambda: nn.RMSNorm(8, eps=1e-6), tokens),
    "LocalResponseNorm": M(lambda: nn.LocalResponseNorm(5, alpha=0.1)),
    "CrossMapLRN2d": M(lambda: nn.CrossMapLRN2d(5, alpha=0.1)),
    # activations
    **{
        name: M(getattr(nn, name))
        for name in [
            "CELU",
            "ELU",
            "GELU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
            "Mish",
            "PReLU",
            "RReLU",
            "ReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Tanhshrink",
            "Identity",
            "Softmax2d",
        ]
    },
    "GELU tanh": M(lambda: nn.GELU(approximate="tanh")),
    "PReLU channels": M(lambda: nn.PReLU(8, init=-0.2)),
    "Softplus beta": M(lambda: nn.Softplus(beta=2.0, threshold=3.0)),
    "Threshold": M(lambda: nn.Threshold(0.3, -1.0)),
    "Hardtanh bounds": M(lambda: nn.Hardtanh(0.1, 0.7)),
    "GLU": M(lambda: nn.GLU(1)),
    "Softmax": M(lambda: nn.Softmax(dim=1)),
    "LogSoftmax": M(lambda: nn.LogSoftmax(dim=1)),
    "Softmin": M(lambda: nn.Softmin(dim=3)),
    **{
        name: M(lambda name=name: getattr(nn, name)(0.3))  # type: ignore[misc]
        for name in ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
    },
    # shapes
    "Flatten": M(nn.Flatten),
    "Unflatten": M(lambda: nn.Unflatten(1, (2, 4))),
    "Fold": M(lambda: nn.Fold((4, 4), 2, stride=2), lambda m, y: m(y.reshape(2, -1, 4))),
    "Unfold": M(lambda: nn.Unfold(3, padding=1, stride=2)),
    "PixelShuffle": M(lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": M(lambda: nn.PixelUnshuffle(2)),
    "ChannelShuffle": M(lambda: nn.ChannelShuffle(4)),
    "Upsample": M(lambda: nn.Upsample(scale_factor=2)),
    "Upsample bilinear": M(lambda: nn.Upsample(scale_factor=1.5, mode="bilinear")),
    "Upsample bicubic": M(lambda: nn.Upsample((13, 11), mode="bicubic")),
    "UpsamplingBilinear2d": M(lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    "UpsamplingNearest2d": M(lambda: nn.UpsamplingNearest2d((12, 20))),
    # sequences and attention
    "RNN": M(lambda: nn.RNN(8, 5, batch_first=True), tokens),
    "RNN relu": M(lambda: nn.RNN(8, 5, batch_first=True, nonlinearity="relu", bidirectional=True), tokens),
    "GRU": M(lambda: nn.GRU(8, 5, batch_first=True, bidirectional=True), tokens),
    "LSTM": M(lambda: nn.LSTM(8, 5, batch_first=True), tokens),
    "LSTM layers": M(lambda: nn.LSTM(8, 5, num_layers=2, bidirectional=True), tokens),
    "RNNCell": M(lambda: nn.RNNCell(8, 5), lambda m, y: m(y.mean((2, 3)))),
    "GRUCell": M(lambda: nn.GRUCell(8, 5), lambda m, y: m(y.mean((2, 3)))),
    "LSTMCell": M(lambda: nn.LSTMCell(8, 5), lambda m, y: m(y.mean((2, 3)))),
    "MultiheadAttention": M(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda m, y: m(*[y.flatten(2).transpose(1, 2)] * 3, need_weights=False)[0],
    ),
    "MultiheadAttention weights": M(
        lambda: nn.MultiheadAttention(8, 2, bias=False), lambda m, y: m(*[y.flatten(2).transpose(1, 2)] * 3)
    ),
    "TransformerEncoderLayer": M(lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), tokens),
    "TransformerEncoder": M(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", norm_first=True, batch_first=True),
            2,
            enable_nested_tensor=False,
        ),
        tokens,
    ),
    "TransformerDecoderLayer": M(
        lambda: nn.TransformerDecoderLayer(8, 2, 12), lambda m, y: m(*[y.flatten(2).permute(2, 0, 1)] * 2)
    ),
    "TransformerDecoder": M(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 1),
        lambda m, y: m(*[y.flatten(2).transpose(1, 2)] * 2),
    ),
    "Transformer": M(
        lambda: nn.Transformer(8, 2, 1, 1, 12, batch_first=True), lambda m, y: m(*[y.flatten(2).transpose(1, 2)] * 2)
    ),
    "Embedding": M(lambda: nn.Embedding(5, 6), lambda m, y: m((y * 3).long().clamp(0, 4))),
    # distances
    "CosineSimilarity": M(lambda: nn.CosineSimilarity(dim=1), lambda m, y: m(y, y.flip(3))),
    "PairwiseDistance": M(lambda: nn.PairwiseDistance(2), lambda m, y: m(y.flatten(1), y.flip(3).flatten(1))),
}

BAG = "torch writes it as a loop over sequences, which TensorRT-RTX does not read and ONNX Runtime 1.32 crashes on"

WITHOUT: dict[str, str] = {
    "EmbeddingBag": BAG,
    ".*Loss.*": "a loss: it is part of training, not of a network that is deployed",
    "Module|Container|Sequential|ModuleDict|ModuleList|ParameterDict|ParameterList": "a container: it computes nothing",
    "DataParallel": "it spreads a network over GPUs; export takes the one inside",
    "RNNBase|RNNCellBase": "a base class",
    "Lazy.*": "once it has run it is the module that its name says; four of them are covered",
    "FractionalMaxPool3d": "it draws random pools at every call",
}


def _made(lazy: nn.Module, x: torch.Tensor) -> nn.Module:
    lazy(x)
    return lazy
