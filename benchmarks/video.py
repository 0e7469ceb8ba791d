"""`infer` on a made video of 2,000 frames: are all in order, does memory stay flat, and what do stages at once gain?

    python benchmarks/video.py [--frames N] [--out FILE]        needs the extra `video`

The video is Motion JPEG of 320x240, made here; the brightness of a frame is its number. The network is a detector-sized
stack of convolutions whose first output is that brightness, untrained.

infer    over the whole video: the brightness that it answers with must be that of the frame's number, and the resident
         memory is read every 100 frames
work     decode, prepare, inference and drawing each repeat their own work until they are as long as the longest done
         four times, so that whole repetitions come out nearly equal; one thread for inference, all on this machine's
         cores
wait     each of them waits until it has taken as long as 1.25 times the longest, as a stage does whose work is done by
         a camera, a GPU or a video decoder

The last two run the same stages in a loop and by `msn_deploy.pipeline.flow`, in the order A B B A over parts of the
video; the ratio is that of the rates.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from result import add_out, give
from torch import nn

from msn_deploy.data.preparation import preparation
from msn_deploy.data.video import frames, video_source
from msn_deploy.machine.environment import read_environment
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.flow import Meter, Stage, flow
from msn_deploy.pipeline.infer import infer
from msn_deploy.pipeline.load import Model, load

WIDTH, HEIGHT, SIDE = 320, 240, 128
JPEG_AT_0 = 22.5  # mean of the first frame, as it is read back
LEVELS = 200  # of brightness; the number of a frame is known modulo that
STAGES = ("decode", "prepare", "inference", "drawing")
PARTS = 8  # of each arm


class Net(nn.Module):
    """Some convolutions, and beside them the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 24), (24, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, 2 if before < after else 1, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((1, 2, 3)).unsqueeze(1), self.layers(x).mean((2, 3))


def make_video(path: Path, count: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    noise = np.random.default_rng(0).integers(0, 8, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for at in range(count):
        writer.write(noise + np.uint8(20 + at % LEVELS))
    writer.release()


def resident_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024


def order_and_memory(model: Path, film: Path) -> dict[str, Any]:
    wrong, memory, meter, at = 0, [], Meter(), -1
    for at, told in enumerate(infer(model, [film], threads=1, draw=True, meter=meter)):
        assert told.answer is not None, told.error
        number = float(np.ravel(next(iter(told.answer.arrays.values())))[0]) * 255 - JPEG_AT_0
        wrong += told.image != f"{film}#{at}" or abs(number - at % LEVELS) > 0.5
        if at % 100 == 99:
            memory.append(round(resident_mib(), 1))
    later = memory[len(memory) // 4 :]
    return {
        "frames": at + 1,
        "out_of_order": wrong,
        "per_s": round(meter.rate, 1),
        "busy": {name: round(share, 3) for name, share in meter.shares().items()},
        "resident_mib": memory,
        "growth_mib": round(max(later) - later[0], 1) if later else None,
    }


def works_of(model: Model) -> dict[str, Callable[[Any], Any]]:
    """The stages of `infer` behind the decoder."""

    def drawing(item: Any) -> Any:
        pixels, outputs = item
        model.read(outputs, pixels)
        Image.fromarray(pixels).save(BytesIO(), "PNG", compress_level=1)
        return len(outputs)

    return {
        "prepare": lambda pixels: (pixels, model.prepared(pixels, name="x")),
        "inference": lambda item: (item[0], model.ran(item[1])[0]),
        "drawing": drawing,
    }


def timed(model: Model, film: Path) -> dict[str, float]:
    """Return the median of what each stage takes alone, s."""
    source, works = frames(video_source(str(film))), works_of(model)
    taken: dict[str, list[float]] = {name: [] for name in STAGES}
    for _ in range(60):
        start = time.perf_counter()
        item: Any = next(source)
        taken["decode"].append(time.perf_counter() - start)
        for name, work in works.items():
            start = time.perf_counter()
            item = work(item)
            taken[name].append(time.perf_counter() - start)
    source.close()
    return {name: statistics.median(each[10:]) for name, each in taken.items()}


def compared(model: Model, film: Path, count: int, *, waits: bool) -> dict[str, Any]:
    alone = timed(model, film)
    length = max(alone.values()) * (1.25 if waits else 4.0)
    times = {name: max(1, round(length / each)) for name, each in alone.items()}
    never = Event()

    def as_long(name: str, work: Callable[[], Any]) -> Any:
        if not waits:
            for _ in range(times[name] - 1):
                work()
            return work()
        start = time.perf_counter()
        made = work()
        never.wait(max(0.0, length - (time.perf_counter() - start)))
        return made

    works = works_of(model)
    stages = [
        Stage(name, lambda item, name=name, work=work: as_long(name, lambda: work(item)))
        for name, work in works.items()
    ]

    def source(part: int) -> Iterator[Any]:
        """Give frames of the video; to repeat the decoder's work, further ones are read and dropped."""
        capture = frames(video_source(str(film)))
        for _ in range(part):
            yield as_long("decode", lambda: next(capture))
        capture.close()

    part = min(count // max(1, 1 if waits else times["decode"]), max(40, int(6 / length / PARTS)))
    rates: dict[str, list[float]] = {"loop": [], "flow": []}
    busy: dict[str, float] = {}
    for turn in range(PARTS):
        for arm in ("loop", "flow") if turn % 2 == 0 else ("flow", "loop"):
            start = time.perf_counter()
            if arm == "loop":
                for item in source(part):
                    for stage in stages:
                        item = stage.work(item)
            else:
                meter = Meter()
                made = list(flow(source(part), stages, here=1, meter=meter))
                assert len(made) == part
                busy = meter.shares()
            rates[arm].append(part / (time.perf_counter() - start))
    ratios = sorted(flowing / looped for flowing, looped in zip(rates["flow"], rates["loop"], strict=True))
    return {
        "alone_ms": {name: round(1e3 * each, 3) for name, each in alone.items()},
        "stage_ms": round(1e3 * length, 3),
        "times": None if waits else times,
        "frames_per_part": part,
        "per_s": {arm: [round(each, 1) for each in found] for arm, found in rates.items()},
        "ratio": [round(each, 3) for each in (statistics.median(ratios), ratios[0], ratios[-1])],
        "busy": {name: round(share, 3) for name, share in busy.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    add_out(parser)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        film, model = Path(folder) / "film.avi", Path(folder) / "net.onnx"
        make_video(film, asked.frames)
        torch.manual_seed(0)
        export_onnx(Net().eval(), model, input_shape=(1, 3, SIDE, SIDE), preparation=preparation("zero-one", {}))
        result = {
            "schema": 1,
            "opencv": cv2.__version__,
            "environment": read_environment().to_json(),
            "infer": order_and_memory(model, film),
        }
        sys.stderr.write(f"{json.dumps(result['infer'])}\n")
        with load(model, threads=1) as loaded:
            for name in ("work", "wait"):
                result[name] = compared(loaded, film, asked.frames, waits=name == "wait")
                sys.stderr.write(f"{name}: {json.dumps(result[name])}\n")
    give(result, asked.out)


if __name__ == "__main__":
    main()
