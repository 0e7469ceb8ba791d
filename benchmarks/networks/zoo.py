"""Networks that others wrote, with random weights and shaken BatchNorm statistics, as factories: `zoo.py:NAME`.

None of the packages is a dependency of msn-deploy: `run.py` installs them into an environment of their own. What their
authors wrote is called, never copied; the networks at the end are short and written here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.cli.options import parse_input, parse_shape
from msn_deploy.model.feeds import Array, example_of, fixed_input, random_feeds

SEED = 7
_NEGATIVE = 0.15  # share of gains below zero: trained networks have some


@dataclass(frozen=True, slots=True)
class Network:
    """One row: how it is made, and what it is fed."""

    name: str
    family: str
    inputs: tuple[str, ...]
    """As `export --input` takes them; one without a name is `--input-shape`."""
    make: Callable[[], nn.Module | Path]
    steps: tuple[str, ...] = ("export", "calibrate", "fp16", "int8", "bench")
    why_not: str = ""
    """What a step that is left out would need."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Numbers that whole inputs have to be; the file is then exported with its sizes open, on such feeds."""


def without_compiled_operators() -> None:
    """Define operators of torchvision, whose compiled part does not load beside the CPU torch: then it imports."""
    if _KEPT:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in _COMPILED:  # nothing here calls them: their signatures do not matter
        library.define(f"{name}(Tensor input) -> Tensor")
    _KEPT.append(library)


_KEPT: list[object] = []
_POOLINGS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_COMPILED = ("nms", "qnms", "qroi_align", *_POOLINGS, *(f"_{name}_backward" for name in _POOLINGS))


def shaken(net: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """Give a network of random weights what training leaves, in place; return it in evaluation mode.

    Gains and shifts of every BatchNorm are random, some gains negative; its statistics are those of the inputs, and
    then moved, so that they normalise, but not perfectly. Weights of zeros become small numbers.
    """
    generator = torch.Generator().manual_seed(SEED)
    norms = [module for module in net.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        for norm in norms:
            if norm.weight is not None:
                size = norm.weight.shape
                sign = torch.where(torch.rand(size, generator=generator) < _NEGATIVE, -1.0, 1.0)
                norm.weight.copy_((0.5 + torch.rand(size, generator=generator)) * sign)
                norm.bias.copy_(0.1 * torch.randn(size, generator=generator))
            norm.momentum = None
            norm.reset_running_stats()
            norm.train()
        net(*inputs)
        for norm in norms:
            norm.eval()
            size = norm.running_mean.shape
            norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(size, generator=generator))
            norm.running_var.mul_(0.8 + 0.4 * torch.rand(size, generator=generator)).add_(1e-3)
    return net


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Let `zoo.py:NAME` be a factory of each network."""
    if name.startswith("_") or name not in BY_NAME:
        raise AttributeError(name)
    return lambda: built(name)


def built(name: str) -> nn.Module:
    """Make a network by its name. The same weights every time."""
    network = BY_NAME[name]
    torch.manual_seed(SEED)
    made = network.make()
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name} is a file")
    return shaken(made, [torch.from_numpy(np.concatenate([each] * 2)) for each in feeds_of(network, seed=1).values()])


def feeds_of(network: Network, *, seed: int) -> dict[str, Array]:
    """Return one run's inputs."""
    if "=" in network.inputs[0]:
        given = [example_of(parse_input(each)) for each in network.inputs]
    else:
        given = [fixed_input("input", "float32", parse_shape(network.inputs[0]))]
    feeds = random_feeds(given, seed=seed)
    return feeds | {name: np.full_like(feeds[name], value) for name, value in network.values.items()}


def _timm(name: str, side: int = 224, **options: Any) -> Network:
    def make() -> nn.Module:
        without_compiled_operators()
        timm: Any = importlib.import_module("timm")
        return timm.create_model(name, pretrained=False, **options)

    label = f"{name}_features" if options.get("features_only") else name
    return Network(f"timm_{label}", "timm", (f"1,3,{side},{side}",), make)


def _torchvision(path: str, *inputs: str, **options: Any) -> Network:
    def make() -> nn.Module:
        without_compiled_operators()
        module, _, name = path.rpartition(".")
        owner: Any = importlib.import_module(f"torchvision.models{module and '.'}{module}")
        return getattr(owner, name)(weights=None, **options)

    return Network(f"torchvision_{path.rpartition('.')[2]}", "torchvision", inputs or ("1,3,224,224",), make)


def _yolo(config: str, side: int = 320) -> Network:
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "cls": "ClassificationModel", "obb": "OBBModel"}

    def make() -> nn.Module:
        without_compiled_operators()
        tasks: Any = importlib.import_module("ultralytics.nn.tasks")
        kind = next((cls for part, cls in kinds.items() if f"-{part}" in config), "DetectionModel")
        net = getattr(tasks, kind)(f"{config}.yaml", verbose=False)
        head = net.model[-1]
        if hasattr(head, "export"):
            head.export, head.format = True, "onnx"  # one tensor, as its own exporter has it
        return net

    return Network(f"ultralytics_{config}", "ultralytics", (f"1,3,{side},{side}",), make)


def _hf(kind: str, config: str, *inputs: str, label: str = "", **options: Any) -> Network:
    def make() -> nn.Module:
        without_compiled_operators()
        transformers: Any = importlib.import_module("transformers")
        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return Network(f"transformers_{label or kind}", "transformers", inputs or ("1,3,224,224",), make)


def _smp(kind: str, encoder: str, side: int = 128) -> Network:
    def make() -> nn.Module:
        without_compiled_operators()
        smp: Any = importlib.import_module("segmentation_models_pytorch")
        return getattr(smp, kind)(encoder, encoder_weights=None, classes=5)

    return Network(f"smp_{kind}_{encoder}", "segmentation-models-pytorch", (f"1,3,{side},{side}",), make)


def _file(name: str, package: str, pattern: str, *inputs: str, **options: Any) -> Network:
    def make() -> Path:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(package)
        return next(iter(sorted(Path(spec.submodule_search_locations[0]).rglob(pattern))))

    return Network(name, "ONNX file", inputs, make, **options)


def _own(kind: type[nn.Module], *inputs: str) -> Network:
    return Network(f"own_{kind.__name__.lower()}", "written here", inputs, kind)


class M5(nn.Module):
    """Raw audio, one dimension (Dai et al., arXiv 1610.00087)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(1, 32, 80, 4), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1)]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, k, s), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(4))
                for a, b, k, s in sizes
            )
        )
        self.head = nn.Linear(64, 35)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.body(wave).mean(-1)).log_softmax(-1)


class PointNet(nn.Module):
    """Point clouds (Qi et al., arXiv 1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 64), (64, 128), (128, 256)):
            layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
        self.points = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 40))

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.points(points).amax(-1))


class UNet3D(nn.Module):
    """Volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self._block(1, 8), self._block(8, 16), self._block(16 + 8, 8)
        self.pool, self.up, self.out = nn.MaxPool3d(2), nn.ConvTranspose3d(16, 16, 2, 2), nn.Conv3d(8, 2, 1)

    @staticmethod
    def _block(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU())

    def forward(self, volume: Tensor) -> Tensor:
        high = self.a(volume)
        return self.out(self.c(torch.cat([high, self.up(self.b(self.pool(high)))], 1)))


def _conv(a: int, b: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class Stereo(nn.Module):
    """Two views, a correlation volume, disparity and confidence."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.cost = nn.Sequential(_conv(3, 16, 2), _conv(16, 16)), _conv(8, 16)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = self.features(left), self.features(right)
        shifted = [F.pad(b, (at, 0, 0, 0))[..., : b.shape[-1]] for at in range(8)]
        volume = torch.stack([(a * each).mean(1) for each in shifted], 1)
        return {"disparity": F.interpolate(self.out(self.cost(volume)), scale_factor=2), "confidence": volume.amax(1)}


class CRNN(nn.Module):
    """Text lines: convolutions, then an LSTM (Shi et al., arXiv 1507.05717)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(1, 32, 2), _conv(32, 64, 2), _conv(64, 64), nn.AvgPool2d((8, 1)))
        self.lstm, self.head = nn.LSTM(64, 48, bidirectional=True, batch_first=True), nn.Linear(96, 37)

    def forward(self, line: Tensor) -> Tensor:
        return self.head(self.lstm(self.body(line).squeeze(2).transpose(1, 2))[0])


class ESPCN(nn.Module):
    """Super-resolution by shuffled pixels (Shi et al., arXiv 1609.05158)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 32), _conv(32, 16), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


class Pose(nn.Module):
    """Heat maps by transposed convolutions (Xiao et al., arXiv 1804.06208)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 64, 2))
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.out = nn.Conv2d(32, 17, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.up(self.body(image)))


class Embedding(nn.Module):
    """Faces: a unit vector, behind a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.neck = nn.BatchNorm1d(32)
        self.out = nn.Linear(32, 128, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.out(self.neck(self.body(image))))


class AgeAndGender(nn.Module):
    """Two tasks, two outputs, and the normalisation of its images inside."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.body = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2))
        self.age, self.gender = nn.Linear(32, 1), nn.Linear(32, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body((image - self.mean) / self.std).mean((2, 3))
        return self.age(x), self.gender(x).softmax(1)


class Camera(nn.Module):
    """Frames as a camera gives them; a mask of classes, not of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2)), nn.Conv2d(32, 5, 1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.body(frames.permute(0, 3, 1, 2).float() / 255)
        return F.interpolate(self.out(x), scale_factor=4, mode="bilinear").argmax(1)


class MLP(nn.Module):
    """Sensor readings, no image at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(24, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.BatchNorm1d(64),
            nn.Tanh(),
            nn.Linear(64, 3),
        )

    def forward(self, readings: Tensor) -> Tensor:
        return self.body(readings)


_SMALL_VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
_TIMM = (
    "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "ghostnet_100", "ghostnetv2_100", "densenet121",
    "convnext_atto", "convnextv2_atto", "repvgg_a0", "mobileone_s0", "dla34", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "fastvit_t8", "edgenext_xx_small", "hrnet_w18_small", "regnety_002", "swin_tiny_patch4_window7_224", "resnest14d",
    "tf_efficientnet_lite0", "mnasnet_small", "lcnet_050", "cspdarknet53", "vgg11_bn", "res2net50_26w_4s",
    "efficientformer_l1", "levit_128s", "poolformer_s12", "mixer_s32_224", "skresnet18", "rexnet_100", "repvit_m0_9",
    "mobilenetv4_conv_small", "efficientvit_b0", "xcit_nano_12_p16_224", "nf_regnet_b0", "inception_next_atto",
    "starnet_s1",
)  # fmt: skip
NETWORKS: Sequence[Network] = (
    *(_timm(name) for name in _TIMM),
    _timm("mobilevit_xxs", 256),
    _timm("inception_v3", 299, aux_logits=False),
    _timm("resnet18", features_only=True),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("squeezenet1_1"),
    _torchvision("mobilenet_v2"),
    _torchvision("googlenet", init_weights=True, aux_logits=False),
    _torchvision("segmentation.deeplabv3_mobilenet_v3_large", "1,3,128,128", weights_backbone=None),
    _torchvision("segmentation.lraspp_mobilenet_v3_large", "1,3,128,128", weights_backbone=None),
    _torchvision("segmentation.fcn_resnet50", "1,3,128,128", weights_backbone=None),
    _torchvision("video.r2plus1d_18", "1,3,8,64,64"),
    _torchvision("video.mc3_18", "1,3,8,64,64"),
    _torchvision("optical_flow.raft_small", "image1=1,3,128,128", "image2=1,3,128,128"),
    *(
        _yolo(name)
        for name in (
            "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolov5n",
            "yolo11n-obb",
        )
    ),
    _yolo("yolov8n-cls", 224),
    _yolo("yolo11n-cls", 224),
    _hf("SegformerForSemanticSegmentation", "SegformerConfig", "1,3,128,128"),
    _hf("GLPNForDepthEstimation", "GLPNConfig", "1,3,128,128"),
    _hf("YolosForObjectDetection", "YolosConfig", "1,3,128,128", image_size=[128, 128], **_SMALL_VIT),
    _hf("ResNetForImageClassification", "ResNetConfig", embedding_size=16, hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1]),
    _hf("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", "1,3,128,128"),
    _hf("MobileViTForSemanticSegmentation", "MobileViTConfig", "1,3,128,128"),
    _hf("Dinov2ForImageClassification", "Dinov2Config", "1,3,112,112", image_size=112, **_SMALL_VIT),
    _hf("Swin2SRForImageSuperResolution", "Swin2SRConfig", "1,3,32,32", image_size=32, embed_dim=36, depths=[2, 2],
        num_heads=[2, 2]),
    *(_smp(kind, encoder) for kind, encoder in (
        ("Unet", "resnet18"), ("UnetPlusPlus", "resnet18"), ("FPN", "mobilenet_v2"), ("DeepLabV3Plus", "resnet18"),
        ("PSPNet", "resnet18"), ("MAnet", "resnet18"), ("Linknet", "resnet18"), ("PAN", "resnet18"),
    )),
    _file("file_nudenet", "nudenet", "320n.onnx", "images=1,3,320,320"),
    _file("file_ppocr_det", "rapidocr_onnxruntime", "*det*.onnx", "x=1,3,160,320"),
    _file("file_ppocr_rec", "rapidocr_onnxruntime", "*rec*.onnx", "x=1,3,48,320"),
    _file("file_ppocr_cls", "rapidocr_onnxruntime", "*cls*.onnx", "x=1,3,48,192"),
    _file("file_magika", "magika", "*.onnx", "bytes=1,2048:int32", steps=("export", "fp16", "bench"),
          why_not="no layer with constant weights that INT8 takes"),
    _file("file_silero_vad", "silero_vad", "silero_vad.onnx", "input=1,512", "state=2,1,128", "sr=:int64",
          steps=("export", "bench"), values={"sr": 16000, "state": 0},
          why_not="an If over the sample rate: ranges of what runs only sometimes are not measured"),
    _own(M5, "wave=1,1,8000"),
    _own(PointNet, "points=1,3,256"),
    _own(UNet3D, "volume=1,1,16,32,32"),
    _own(Stereo, "left=1,3,64,128", "right=1,3,64,128"),
    _own(CRNN, "line=1,1,32,128"),
    _own(ESPCN, "image=1,3,48,64"),
    _own(Pose, "image=1,3,96,96"),
    _own(Embedding, "image=1,3,112,112"),
    _own(AgeAndGender, "image=1,3,64,64"),
    _own(Camera, "frames=1,96,128,3:uint8"),
    _own(MLP, "readings=1,24"),
)  # fmt: skip
BY_NAME = {network.name: network for network in NETWORKS}
