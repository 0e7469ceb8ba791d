"""Plans that do not fit the machine they meet, with the error and the words of each; for test_engine_preflight.py."""

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice

XAVIER = {"jetson": "NVIDIA Jetson AGX Xavier", "memory_gib": 31.2}


DESKTOP = {"arch": "x86_64", "jetson": None, "l4t": None}


ADA = ("NVIDIA GeForce RTX 4090", "8.9")
RTX = {"backend": "tensorrt-rtx", "backend_version": "1.7.1.116", "compute_capability": "8.6", "device": None}


# facts of the plan, the machine it meets, error, exit code, words of the message
TABLE = {
    "no TensorRT": ({}, {"versions": {}}, MissingDependency, 3, "needs TensorRT 10.3.0.30, and no TensorRT is"),
    "other TensorRT": (
        RTX,
        {},
        MissingDependency,
        3,
        "is a plan of TensorRT-RTX, which TensorRT cannot load",
    ),
    "version": (
        {},
        {"versions": {"tensorrt": "10.7.0"}},
        InputError,
        2,
        "was built by TensorRT 10.3.0.30, and here is TensorRT 10.7.0: a plan loads only in the version that built it",
    ),
    "build number": ({}, {"versions": {"tensorrt": "10.3.0.26"}}, InputError, 2, "and here is TensorRT 10.3.0.26"),
    "RTX version": (
        {**RTX, "version_compatible": True},
        {"versions": {"tensorrt-rtx": "1.8.0.5"}, "gpu": ADA},
        InputError,
        2,
        "only in the version that built it",
    ),
    "older than a compatible plan": (
        {"version_compatible": True},
        {"versions": {"tensorrt": "10.0.1"}},
        InputError,
        2,
        "a version-compatible plan loads in later versions",
    ),
    "two majors on": (
        {"version_compatible": True, "backend_version": "8.6.2.3"},
        {"versions": {"tensorrt": "11.4.0"}},
        InputError,
        2,
        "a version-compatible plan loads in later versions",
    ),
    "compute capability": (
        {"compute_capability": "8.6"},
        {},
        InputError,
        2,
        "holds code for sm_86, and this GPU is sm_87",
    ),
    "before Ampere": (
        {"hardware_compatible": True},
        {"gpu": ("Xavier", "7.2"), **XAVIER},
        InputError,
        2,
        "runs on any GPU since Ampere (sm_80), and this one is sm_72",
    ),
    "RTX compute capability": (
        RTX,
        {"versions": {"tensorrt-rtx": "1.7.1.116"}, "gpu": ADA, **DESKTOP},
        InputError,
        2,
        "holds code for sm_86, and this GPU is sm_89",
    ),
    "architecture": (
        {"machine": {"arch": "x86_64"}},
        {},
        InputError,
        2,
        "was built on x86_64, and this machine is aarch64",
    ),
    "module": (
        {},
        {"jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3},
        InputError,
        2,
        "was tuned on another device: Jetson Orin Nano 8GB, and this is Jetson Orin NX 16GB",
    ),
    "GPU": (
        {"machine": {"arch": "x86_64"}, "device": "NVIDIA GeForce RTX 3090", "compute_capability": "8.6"},
        {"gpu": ("NVIDIA RTX A4000", "8.6"), **DESKTOP},
        InputError,
        2,
        "another device: NVIDIA GeForce RTX 3090, and this is NVIDIA RTX A4000",
    ),
    "no GPU": ({}, {"gpu": None}, MissingDevice, 3, "no NVIDIA driver answers here with one"),
    "no DLA": ({"dla_core": 0}, {}, MissingDevice, 3, "DLA core 0, and Jetson Orin Nano 8GB has no DLA cores"),
    "DLA number": (
        {"dla_core": 2, "machine": None},
        {"jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3},
        MissingDevice,
        3,
        "DLA core 2, and Jetson Orin NX 16GB has 2 DLA cores",
    ),
    "DLA below zero": ({"dla_core": -1}, {}, MissingDevice, 3, "DLA core -1"),
    "no DLA on a desktop": (
        {"dla_core": 0, "machine": None, "device": None, "compute_capability": None},
        {"gpu": ADA, **DESKTOP},
        MissingDevice,
        3,
        "DLA core 0, and NVIDIA GeForce RTX 4090 has no DLA cores",
    ),
    "not trusted": ({}, {}, InputError, 2, "is not trusted (SHA-256"),
}
