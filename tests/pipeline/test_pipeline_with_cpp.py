"""The C++ half that needs no GPU, built with all warnings and sanitizers, against Python on real images."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_nets import classifier, detector, network, segmenter
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess, TensorSpec
from msn_deploy.data.decode import open_picture
from msn_deploy.data.frame import placement
from msn_deploy.data.idx import read_idx_folder
from msn_deploy.data.images import fit_image
from msn_deploy.data.names import folder_of
from msn_deploy.data.preprocess import to_input
from msn_deploy.data.scenes import read_scenes
from msn_deploy.engine import BuildOptions
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline import with_cpp
from msn_deploy.pipeline.infer import infer
from msn_deploy.tasks import make_task
from msn_deploy.tasks.task import Given

pytestmark = pytest.mark.slow
ABC = ("a", "b", "c")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def msn_cpu(tmp_path_factory):
    """Build msn-cpu; return a function that runs it and gives the finished process."""
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not here")
    folder = tmp_path_factory.mktemp("build")
    for words in (
        ["cmake", "-S", str(with_cpp.SOURCES), "-B", str(folder), "-DSANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"],
        ["cmake", "--build", str(folder), "-j2"],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def run(*words: Any, program: Path = folder / "msn-cpu") -> subprocess.CompletedProcess[str]:
        done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, 1, 2, 3), done.stderr
        assert "Sanitizer" not in done.stderr
        assert "runtime error" not in done.stderr
        return done

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def kernels(msn_cpu):
    """Build the kernels of prepare.cu for the CPU; return the program that compares what they make."""
    folder: Path = msn_cpu.folder / "shim"
    folder.mkdir()
    for name in ("cuda_runtime.h", "cuda_runtime_api.h", "cuda_fp16.h"):
        (folder / name).write_text(f'#include "{HERE / "cuda_shim.h"}"\n')
    text, count = re.subn(
        r"(\w+)<<<(.+?), block, 0, stream>>>\(", r"over(\2, block, \1)(", (with_cpp.SOURCES / "prepare.cu").read_text()
    )
    assert count == 2
    (folder / "prepare.cpp").write_text(text)
    return linked(msn_cpu.folder, "kernels", folder / "prepare.cpp", HERE / "kernels_on_cpu.cpp", f"-I{folder}")


def linked(folder: Path, name: str, *sources: Path | str) -> Path:
    """Build a program on what msn-cpu is built of."""
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fsanitize=address,undefined"]
    words = ["g++", *flags, f"-I{with_cpp.SOURCES}", *map(str, sources), str(folder / "libmsn.a")]
    for libraries in (["-lpng", "-ljpeg"], ["-lpng"], ["-ljpeg"], []):  # as CMake found them
        done = subprocess.run(
            [*words, *libraries, "-o", str(folder / name)], capture_output=True, text=True, timeout=600
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / name


def bundled_images() -> list[np.ndarray]:
    folder = folder_of("digits")
    made: list[np.ndarray] = []
    for split in ("train", "test"):
        raw = read_idx_folder(folder, split)
        made += [np.asarray(each) for each in raw.images]
    return made + [np.asarray(each) for each in read_scenes(folder, "test", None).images]


def write(folder: Path, path: Path, pictures: list[np.ndarray]) -> tuple[Path, Path]:
    """Write settings and what Python makes of pictures; return both files."""
    made = with_cpp.Network(open_model(path, step="test"))
    settings = folder / f"{path.stem}.settings.json"
    settings.write_text(json.dumps(made.settings()))
    for name, content in with_cpp.recorded(made, path.stem, pictures, most_bytes=1 << 40).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    made.close()
    return settings, folder / f"{path.stem}.json"


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
def test_all_bundled_images_are_prepared_and_read_as_in_python(msn_cpu, tmp_path, kind):
    pictures = bundled_images()
    if kind is not classifier:
        pictures = pictures[-250:]  # the scenes
    settings, check = write(tmp_path, kind(tmp_path / "net.onnx"), pictures)
    done = msn_cpu("check", settings, check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(pictures)} of {len(pictures)} images")


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
def test_the_json_is_that_of_infer(msn_cpu, tmp_path, kind):
    path = kind(tmp_path / "net.onnx")
    pictures = with_cpp.check_images(with_cpp.Network(open_model(path, step="test")).prep)
    settings, check = write(tmp_path, path, pictures)
    lines = msn_cpu("answer", settings, check).stdout.splitlines()
    told = [each.to_json() for each in infer(path, sorted((tmp_path / "net").iterdir()))]
    assert len(lines) == len(told) == len(pictures)
    for line, python in zip(lines, told, strict=True):
        assert not python.pop("error")
        assert python.pop("image")
        assert python.pop("latency_ms") > 0
        assert close(json.loads(line), python), (line, python)


def close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) <= 1e-12 * max(1, abs(other)) if isinstance(one, float | int) else one == other


@pytest.fixture
def served(msn_cpu, forge_plan, tmp_path):
    """Return a function that runs msn-infer on an engine of a network: its outputs are those recorded."""
    program = msn_cpu.folder / "msn-infer"
    if not program.exists():
        linked(msn_cpu.folder, program.name, with_cpp.SOURCES / "infer.cpp", HERE / "engine_standin.cpp")

    def serve(path: Path, *words: Any, check: bool = False) -> subprocess.CompletedProcess[str]:
        model = open_model(path, step="test")
        network = with_cpp.Network(model)
        settings, recorded_in = write(tmp_path, path, with_cpp.check_images(network.prep))
        engine = forge_plan(str(recorded_in).encode())
        side = engine.with_name("net.plan.json")
        side.write_text(side.read_text().replace(hashlib.sha256(b"the model").hexdigest(), model.sha256))
        given = ["--check", recorded_in] if check else []
        return msn_cpu(*given, settings, engine, *words, program=program)

    return serve


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
def test_the_program_prints_the_lines_of_infer(served, tmp_path, kind):
    path = kind(tmp_path / "net.onnx")
    assert served(path, check=True).stdout.startswith("4 of 4 images")
    images = [*sorted((tmp_path / "net").iterdir()), tmp_path / "missing.png"]
    done = served(path, *images)
    assert done.returncode == 2, done.stderr
    told = [each.to_json() for each in infer(path, images)]
    for line, python in zip(map(json.loads, done.stdout.splitlines()), told, strict=True):
        assert list(line) == list(python)
        assert line.pop("latency_ms") == (1.5 if python.pop("latency_ms") else 0)
        assert bool(line.pop("error")) == bool(python.pop("error"))
        assert close(line, python)


def test_words_that_are_not_options_are_refused(served, tmp_path):
    path = classifier(tmp_path / "net.onnx")
    for words in ((), ("--fast", "a.png"), ("a.png", "--plugins"), ("--plugins", "x.so", "a.png")):
        assert served(path, *words).returncode == 2
    for words in (("--gpu-prepare",), ("--no-sidecar",)):
        assert served(path, *words, tmp_path / "net" / "0.ppm").returncode == 0


def test_what_differs_is_found(msn_cpu, tmp_path):
    pictures = bundled_images()[:3]
    settings, check = write(tmp_path, classifier(tmp_path / "net.onnx"), pictures)
    content = json.loads(check.read_text())
    content["images"][1]["answer"]["top"][2]["score"] *= 1.001
    content["images"][2]["input"] = "0" * 64
    check.write_text(json.dumps(content))
    done = msn_cpu("check", settings, check)
    assert (done.returncode, done.stdout[:6]) == (1, "1 of 3")
    assert "top: item 2: score" in done.stderr
    assert "another input" in done.stderr


# Preparation: each way into the frame, for images of many sizes.
PREPS = [
    {"fit": fit, "interpolation": interpolation, **more}
    for fit, more in (
        ("resize", {}),
        ("letterbox", {"fill": 114}),
        ("letterbox", {"fill": 3, "align": "corner"}),
        ("crop", {}),
        ("crop", {"short_px": 41}),
        ("pad", {"fill": 200}),
    )
    for interpolation in ("bilinear", "bicubic", "nearest")
]
SIZES = [(1, 1), (37, 23), (40, 32), (5, 32), (32, 7), (97, 131), (64, 80), (3, 200), (33, 41)]


def settings_of(
    folder: Path, prep: Preprocess, *, dtype="float32", task="classification", reading=None, classes=ABC
) -> Path:
    path = folder / "settings.json"
    value = {
        "schema": 1,
        "onnx": {"file": "net.int8.onnx", "sha256": hashlib.sha256(b"the model").hexdigest()},
        "input": {"name": "x", "dtype": dtype},
        "prepare": asdict(prep),
        "task": task,
        "classes": list(classes),
        "reading": reading or {"output": "y", "ending": "logits"},
    }
    path.write_text(json.dumps(value))
    return path


def recorded(folder: Path, entries: list[dict[str, Any]], outputs: bytes = b"") -> Path:
    (folder / "check.bin").write_bytes(outputs)
    (folder / "check.json").write_text(json.dumps({"outputs": "check.bin", "images": entries}))
    return folder / "check.json"


@pytest.mark.parametrize("at", range(len(PREPS)))
def test_every_way_into_the_frame_gives_the_same_bytes(msn_cpu, kernels, tmp_path, at):
    rng = np.random.default_rng(at)
    channels, colour = ((1, ""), (3, "rgb"), (3, "bgr"), (3, "grey"))[at % 4]
    dtype = ("float32", "float16", "uint8")[at % 3]
    as_bytes = {"mean": (0.0,) * channels, "std": (1 / 255,) * channels}
    numbers = {"mean": tuple(rng.uniform(0, 1, channels)), "std": tuple(rng.uniform(0.1, 0.5, channels))}
    prep = Preprocess(
        height_px=40, width_px=32, channels=channels, colour=colour, layout=("NCHW", "NHWC")[at % 2],
        **PREPS[at], **(as_bytes if dtype == "uint8" else numbers),
    )  # fmt: skip
    scores = np.zeros((1, 3), np.float32)
    top = [{"label": each, "score": 1 / 3} for each in ABC]
    entries = []
    for number, (high, wide) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (high, wide, 3) if number % 2 else (high, wide), dtype=np.uint8)
        if prep.fit == "pad" and (high > 40 or wide > 32):
            continue
        fitted = fit_image(pixels, name="x", **prep.image_size)[np.newaxis]
        wanted = to_input(fitted, prep, "uint8" if dtype == "uint8" else "float32").astype(dtype)
        name = f"{number}.ppm"
        (tmp_path / name).write_bytes(with_cpp.netpbm(pixels))
        entries.append(
            {
                "image": name,
                "input": hashlib.sha256(wanted.tobytes()).hexdigest(),
                "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 3], "at": 0}],
                "answer": {**top[0], "top": top},
            }
        )
    settings, check = settings_of(tmp_path, prep, dtype=dtype), recorded(tmp_path, entries, scores.tobytes())
    done = msn_cpu("check", settings, check)
    assert done.returncode == 0, done.stderr
    on_gpu = msn_cpu(settings, check, program=kernels)
    assert int(on_gpu.stdout) == len(entries), on_gpu.stderr


PLAIN = Preprocess(height_px=40, width_px=32, channels=3, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def test_an_image_that_is_too_large_for_a_pad_or_too_long_is_refused(msn_cpu, tmp_path):
    (tmp_path / "a.pgm").write_bytes(with_cpp.netpbm(np.zeros((50, 20), np.uint8)))
    (tmp_path / "b.pgm").write_bytes(with_cpp.netpbm(np.zeros((1, 300_000), np.uint8)))
    for name, fit in (("a.pgm", "pad"), ("b.pgm", "crop")):
        done = msn_cpu("prepare", settings_of(tmp_path, replace(PLAIN, fit=fit)), tmp_path / name, tmp_path / "out")
        assert done.returncode == 2
        assert name in done.stderr


# Every head, on random numbers whose boxes overlap.
def heads() -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(0)
    count = 60
    centres = np.concatenate([rng.uniform(4, 28, (count, 2)), rng.uniform(2, 20, (count, 2))], 1)
    shares = centres / np.tile([32.0, 40.0], 2)
    corners = np.concatenate([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1)
    scores, logits = rng.uniform(0, 1, (count, 3)), rng.normal(0, 2, (count, 3))
    labels = rng.integers(0, 3, count)
    best = rng.uniform(0, 1, count)
    odd = np.concatenate([corners, best[:, None], labels[:, None]], 1)
    odd[5] = odd[4]  # the same box twice
    return {
        "yolov5": ({"y": np.concatenate([centres, best[:, None], scores], 1)}, {}),
        "yolov8": ({"y": np.concatenate([centres, scores], 1).T}, {}),
        "yolov8 rows": ({"y": np.concatenate([centres, scores], 1)}, {"per_box": "best", "iou": 0.3, "max": 7}),
        "fcos": ({"y": np.concatenate([rng.normal(0, 1, (3, 5, 4)), rng.uniform(0.1, 2, (4, 5, 4))])}, {}),
        "fcos stride": (
            {"y": np.concatenate([rng.normal(0, 1, (3, 9, 4)), rng.uniform(0.1, 2, (4, 9, 4))])},
            {"stride": 4},
        ),
        "ssd": ({"b": corners, "s": np.concatenate([logits[:, :1], logits], 1)}, {"units": "pixels"}),
        "ssd softmax": (
            {"b": shares, "s": np.concatenate([scores, best[:, None]], 1)},
            {"format": "xywh", "ending": "softmax"},
        ),
        "detr": ({"b": shares, "s": np.concatenate([logits, logits[:, :1]], 1)}, {}),
        "detr log": (
            {"b": shares, "s": -np.concatenate([scores, best[:, None]], 1)},
            {"ending": "log-softmax", "per_box": "all"},
        ),
        "rt-detr": ({"b": shares, "s": logits}, {}),
        "end-to-end": ({"y": odd}, {"show": 0.01}),
        "yolov7-end": ({"y": np.concatenate([labels[:, None] // 2, corners, labels[:, None], best[:, None]], 1)}, {}),
        "efficientnms": ({"b": corners, "s": best, "c": labels.astype(np.int32), "n": np.asarray([17], np.int32)}, {}),
        "torchvision": ({"b": corners, "s": best, "c": labels + 1}, {}),
    }  # fmt: skip


@pytest.mark.parametrize("name", heads())
def test_every_head_gives_the_boxes_of_python(msn_cpu, tmp_path, name):
    arrays, reading = heads()[name]
    head = name.split()[0]
    of_all = head in ("yolov7-end", "torchvision")
    arrays = {key: array.astype(np.float32) if array.dtype.kind == "f" else array for key, array in arrays.items()}
    outputs = {key: array if of_all else array[np.newaxis] for key, array in arrays.items()}
    if head == "yolov8" and "rows" not in name:
        outputs = {key: array.astype(np.float16) for key, array in outputs.items()}
    roles = {"b": "boxes", "s": "scores", "c": "classes", "n": "count", "y": "output"}
    given = Given(
        model="net",
        classes=ABC,
        named=True,
        reading={"head": head, **{roles[key]: key for key in outputs}, **reading},
        outputs=tuple(TensorSpec(key, array.dtype.name, array.shape) for key, array in outputs.items()),
        endings=("logits",) * len(outputs),
        frame=(40, 32),
    )
    answers_match(msn_cpu, tmp_path, make_task("detection", given), outputs, "boxes")


def answers_match(msn_cpu, folder, task, outputs, key, classes=ABC, prep=replace(PLAIN, fit="letterbox")):  # noqa: B008
    pixels = np.zeros((90, 70, 3), np.uint8)
    (folder / "image.ppm").write_bytes(with_cpp.netpbm(pixels))
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in outputs.items()}
    (answer,) = task.answers(wide, [placement(70, 90, prep)])
    at, entries, content = 0, [], b""
    for name, array in outputs.items():
        entries.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "at": at})
        content += np.ascontiguousarray(array).tobytes()
        at = len(content)
    settings = settings_of(folder, prep, task=task.name, reading=with_cpp.reading_of(task), classes=classes)
    entry = {"image": "image.ppm", "input": "", "outputs": entries, "answer": {}}
    done = msn_cpu("answer", settings, recorded(folder, [entry], content))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found[key]) > 1
    assert close(found, answer.to_json())


MASKS = {
    "logits": ((1, 3, 10, 8), {}, "logits"),
    "at the frame's size": ((1, 3, 40, 32), {}, "logits"),
    "last": ((1, 10, 8, 3), {"layout": "nhwc"}, "logits"),
    "a channel less": ((1, 2, 20, 16), {}, "logits"),
    "held": ((1, 2, 20, 16), {"threshold": 0.8}, "sigmoid"),
    "labels": ((1, 20, 16), {}, "argmax"),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_masks_are_those_of_python(msn_cpu, tmp_path, name, fit):
    shape, reading, ending = MASKS[name]
    rng = np.random.default_rng(0)
    array = rng.uniform(0, 1, shape) if ending == "sigmoid" else rng.normal(0, 2, shape)
    array = rng.integers(0, 3, shape) if ending == "argmax" else array.astype(np.float32)
    given = Given(
        model="net", classes=ABC, named=True, reading=reading, outputs=(TensorSpec("y", array.dtype.name, shape),),
        endings=(ending,), frame=(40, 32),
    )  # fmt: skip
    answers_match(
        msn_cpu, tmp_path, make_task("segmentation", given), {"y": array}, "segments", prep=replace(PLAIN, fit=fit)
    )


@pytest.mark.parametrize("ending", ["logits", "softmax", "sigmoid", "log-softmax"])
@pytest.mark.parametrize("shape", [(1, 7), (1, 2, 1, 1), (1, 1)])
def test_classes_are_those_of_python(msn_cpu, tmp_path, ending, shape):
    array = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    if ending == "log-softmax":
        array = np.log(array)
    if shape == (1, 1) and ending == "log-softmax":
        return
    given = Given(
        model="net", classes=("no", "yes"), named=True, reading={}, outputs=(TensorSpec("y", "float32", shape),),
        endings=(ending,),
    )  # fmt: skip
    answers_match(msn_cpu, tmp_path, make_task("classification", given), {"y": array}, "top", classes=("no", "yes"))


def test_numbers_that_are_not_finite_are_no_answer(msn_cpu, tmp_path):
    (tmp_path / "image.ppm").write_bytes(with_cpp.netpbm(np.zeros((9, 9, 3), np.uint8)))
    outputs = [{"name": "y", "dtype": "float32", "shape": [1, 3], "at": 0}]
    check = recorded(
        tmp_path,
        [{"image": "image.ppm", "input": "", "outputs": outputs, "answer": {}}],
        np.asarray([1, np.nan, 2], np.float32).tobytes(),
    )
    done = msn_cpu("answer", settings_of(tmp_path, PLAIN), check)
    assert done.returncode == 1
    assert "1 of 3" in done.stderr


# Image files.
def pictures(folder: Path) -> list[Path]:
    """Write one file of each kind that is read."""
    scene = Image.fromarray(np.asarray(read_scenes(folder_of("digits"), "test", None).images[0])[:60, :50])
    grey, alpha = scene.convert("L"), Image.linear_gradient("L").resize(scene.size)
    with_alpha, keyed = scene.copy(), scene.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    with_alpha.putalpha(alpha)
    grey_alpha = grey.copy()
    grey_alpha.putalpha(alpha)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (scene, {}),
        "grey.png": (grey, {}),
        "alpha.png": (with_alpha, {}),
        "grey-alpha.png": (grey_alpha, {}),
        "palette.png": (keyed, {}),
        "palette-alpha.png": (keyed, {"transparency": bytes(range(0, 256, 16))}),
        "key.png": (grey, {"transparency": int(np.asarray(grey)[3, 3])}),
        "bits.png": (grey.point(lambda value: value > 90 and 255, "1"), {}),
        "grey.jpg": (grey, {}),
        "444.jpg": (scene, {"quality": 95, "subsampling": 0}),
        "420.jpg": (scene, {"quality": 60}),
        "progressive.jpg": (scene, {"progressive": True}),
        "rgb.bmp": (scene, {}),
        "palette.bmp": (keyed, {}),
        "rgb.ppm": (scene, {}),
        "grey.pgm": (grey, {}),
    }
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f"turned-{turn}.jpg"] = (scene, {"exif": exif.tobytes()})
    files["turned.png"] = (scene, {"exif": exif.tobytes()})
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]


def built_with(msn_cpu: Any, folder: Path, path: Path) -> bool:
    """Whether that format was found at the build."""
    return msn_cpu("prepare", settings_of(folder, PLAIN), path, folder / "out").returncode != 3


def test_image_files_are_read_as_pillow_reads_them(msn_cpu, tmp_path):
    read = 0
    for path in pictures(tmp_path):
        if not built_with(msn_cpu, tmp_path, path):
            continue
        wanted = open_picture(path).to_bytes()
        high, wide = wanted.shape[:2]
        channels = 1 if wanted.ndim == 2 else 3
        prep = Preprocess(
            height_px=high,
            width_px=wide,
            channels=channels,
            mean=(0.0,) * channels,
            std=(1 / 255,) * channels,
            layout="NHWC",
        )
        done = msn_cpu("prepare", settings_of(tmp_path, prep, dtype="uint8"), path, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        found = np.frombuffer((tmp_path / "out").read_bytes(), np.uint8).reshape(wanted.shape)
        assert (found == wanted).all(), path.name
        read += 1
    assert read >= 4


def test_damaged_images_are_refused_and_nothing_more(msn_cpu, tmp_path):
    rng = np.random.default_rng(1)
    settings = settings_of(tmp_path, PLAIN)
    for path in pictures(tmp_path)[::3]:
        content = path.read_bytes()
        for at in range(4):
            changed = bytearray(content[: int(rng.integers(1, len(content)))] if at % 2 else content)
            for place in rng.integers(0, len(changed), 8):
                changed[place] = int(rng.integers(0, 256))
            (tmp_path / f"bad{path.suffix}").write_bytes(changed)
            msn_cpu("prepare", settings, tmp_path / f"bad{path.suffix}", tmp_path / "out")
    for content in (
        b"",
        b"P6",
        b"P6 9 9",
        b"P5 99999999 99999999 255\n",
        b"BM" + bytes(60),
        b"\xff\xd8\xff",
        b"GIF89a",
    ):
        (tmp_path / "bad").write_bytes(content)
        assert msn_cpu("prepare", settings, tmp_path / "bad", tmp_path / "out").returncode in (2, 3)


# Before an engine is loaded.
FITS = ("10.3.0", "8.7", "Orin", "aarch64")


def preflight(msn_cpu, folder, path, here=FITS, plugins=()):
    return msn_cpu("preflight", settings_of(folder, PLAIN), path, *here, *plugins).returncode


def test_an_engine_that_fits_passes(msn_cpu, forge_plan, tmp_path):
    assert preflight(msn_cpu, tmp_path, forge_plan()) == 0
    assert preflight(msn_cpu, tmp_path, forge_plan(version_compatible=True), ("10.7.0", *FITS[1:])) == 0
    assert preflight(msn_cpu, tmp_path, forge_plan(version_compatible=True), ("11.4.1", *FITS[1:])) == 0
    assert preflight(msn_cpu, tmp_path, forge_plan(plugins=["libx.so"]), plugins=["../libx.so"]) == 0


@pytest.mark.parametrize(
    ("facts", "here", "plugins"),
    [
        ({}, ("10.7.0", "8.7", "Orin", "aarch64"), ()),
        ({}, ("10.3.0", "8.6", "Orin", "aarch64"), ()),
        ({}, ("10.3.0", "8.7", "Xavier", "aarch64"), ()),
        ({}, ("10.3.0", "8.7", "Orin", "x86_64"), ()),
        ({"version_compatible": True}, ("10.0.1", *FITS[1:]), ()),
        ({"version_compatible": True, "backend_version": "8.6.2.3"}, ("11.4.0", *FITS[1:]), ()),
        ({"hardware_compatible": True}, ("10.3.0", "7.2", "Xavier", "aarch64"), ()),
        ({"backend": "tensorrt-rtx"}, FITS, ()),
        ({"plugins": ["libx.so"]}, FITS, ()),
        ({}, FITS, ("libx.so",)),
        ({"onnx": "other"}, FITS, ()),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(msn_cpu, forge_plan, tmp_path, facts, here, plugins):
    facts = dict(facts)
    other = facts.pop("onnx", None)
    path = forge_plan(**facts)
    if other:
        side = path.with_name("net.plan.json")
        side.write_text(side.read_text().replace(hashlib.sha256(b"the model").hexdigest(), "0" * 64))
    assert preflight(msn_cpu, tmp_path, path, here, plugins) == 2


def test_a_damaged_engine_or_sidecar_is_refused(msn_cpu, forge_plan, tmp_path):
    path = forge_plan()
    side = path.with_name("net.plan.json")
    text = side.read_text()
    path.write_bytes(b"a Plan")
    assert preflight(msn_cpu, tmp_path, path) == 2
    path.write_bytes(b"a plan")
    assert preflight(msn_cpu, tmp_path, path) == 0
    for content in (
        "",
        "{",
        "[" * 100_000,
        '{"kind": "engine"}',
        text.replace('"engine"', '"onnx"'),
        text[:-40],
        text + "x",
    ):
        side.write_text(content)
        assert preflight(msn_cpu, tmp_path, path) == 2
    side.unlink()
    assert preflight(msn_cpu, tmp_path, path) == 2


def test_the_digest_is_sha256(msn_cpu, forge_plan, tmp_path):
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000):
        content = bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
        assert preflight(msn_cpu, tmp_path, forge_plan(content)) == 0, size


def test_settings_and_records_that_lie_are_refused(msn_cpu, tmp_path):
    settings = settings_of(tmp_path, PLAIN)
    good = json.loads(settings.read_text())
    (tmp_path / "a.pgm").write_bytes(with_cpp.netpbm(np.zeros((5, 5), np.uint8)))
    for key, value in (
        ("height_px", 10**6), ("width_px", 0), ("channels", 2), ("fit", "squeeze"), ("std", [0, 1, 1]), ("mean", [0]),
        ("fill", 256), ("layout", None),
    ):  # fmt: skip
        settings.write_text(json.dumps({**good, "prepare": {**good["prepare"], key: value}}))
        assert msn_cpu("prepare", settings, tmp_path / "a.pgm", tmp_path / "out").returncode == 2, key
    settings.write_text(json.dumps(good))
    for output, image in (
        ({"name": "y", "dtype": "float32", "shape": [1, 3], "at": 4}, "a.pgm"),
        ({"name": "y", "dtype": "float32", "shape": [1, 2**50, 2**50], "at": 0}, "a.pgm"),
        ({"name": "y", "dtype": "float32", "shape": [1, -3], "at": 0}, "a.pgm"),
        ({"name": "y", "dtype": "float64", "shape": [1, 1], "at": 0}, "a.pgm"),
        ({"name": "z", "dtype": "float32", "shape": [1, 3], "at": 0}, "a.pgm"),
        ({"name": "y", "dtype": "float32", "shape": [1, 3], "at": 0}, "../a.pgm"),
        ({"name": "y", "dtype": "float32", "shape": [3], "at": 0}, "a.pgm"),
    ):
        entry = {"image": image, "input": "", "outputs": [output], "answer": {}}
        assert msn_cpu("answer", settings, recorded(tmp_path, [entry], bytes(12))).returncode == 2, output


def test_json_texts_are_read_and_written(msn_cpu, tmp_path):
    names = ('tab\tand "quotes" \\', "ÄÖ 日本 \U0001f600", "\u2028")
    scores = np.asarray([[0, 1, 2]], np.float32)
    given = Given(
        model="net",
        classes=names,
        named=True,
        reading={},
        outputs=(TensorSpec("y", "float32", (1, 3)),),
        endings=("logits",),
    )
    answers_match(msn_cpu, tmp_path, make_task("classification", given), {"y": scores}, "top", classes=names)


# What goes into a bundle.
def test_files_are_those_that_cmake_looks_for(tmp_path):
    models = [
        open_model(kind(tmp_path / f"{kind.__name__}.fp32.onnx"), step="test") for kind in (classifier, segmenter)
    ]
    files = with_cpp.cpp_files(models, BuildOptions())
    assert {"cpp/CMakeLists.txt", "cpp/engine.cpp", "cpp/prepare.cu", "cpp/check/segmenter.fp32/3.pgm"} < set(files)
    for name in ("classifier.fp32", "segmenter.fp32"):
        assert {f"cpp/models/{name}.json", f"cpp/check/{name}.json", f"cpp/check/{name}.bin"} < set(files)
    assert with_cpp.cpp_files(models, BuildOptions()) == files
    built = set(re.findall(r"\w+\.(?:cpp|cu)\b", files["cpp/CMakeLists.txt"].decode()))
    assert built == {each.name for each in with_cpp.SOURCES.iterdir() if each.name.endswith((".cpp", ".cu"))}


def test_what_is_not_read_there_is_refused(tmp_path):
    bare = network(tmp_path / "bare.onnx", "classification")
    with pytest.raises(InputError, match="--preprocess"):
        with_cpp.cpp_files([open_model(bare, step="test")], BuildOptions())
    content = classifier(tmp_path / "net.onnx").read_bytes()
    depth = tmp_path / "depth.onnx"
    depth.write_bytes(content.replace(b'"task": "classification"', b'"task": "multi-label"   '))
    with pytest.raises(InputError, match="multi-label"):
        with_cpp.cpp_files([open_model(depth, step="test")], BuildOptions())


def test_records_end_before_they_get_too_large(tmp_path):
    made = with_cpp.Network(open_model(segmenter(tmp_path / "net.onnx"), step="test"))
    pictures = with_cpp.check_images(made.prep)
    whole = with_cpp.recorded(made, "net", pictures)
    few = with_cpp.recorded(made, "net", pictures, most_bytes=len(whole["net.bin"]) // 2)
    one = with_cpp.recorded(made, "net", pictures, most_bytes=1)
    assert [len(json.loads(each["net.json"])["images"]) for each in (whole, few, one)] == [4, 2, 1]
    assert struct.calcsize("f") * 11 * 16 * 24 == len(one["net.bin"])
