"""A model file as a function: whatever a picture comes as, and from several threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import msn_deploy
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY
from msn_deploy.pipeline import load as loading
from msn_deploy.pipeline.evaluate import open_image_model
from msn_deploy.pipeline.infer import infer

COLOURS = {"red": (255, 51, 0), "green": (0, 200, 90), "blue": (3, 4, 250), "dark": (0, 0, 0)}


def pixels(colour, size=9):
    return np.full((size, size, 3), colour, dtype=np.uint8)


def label(answer):
    return answer.guesses[0].label


def test_a_file_pixels_and_a_pillow_image_get_the_answer_of_infer(colours, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels(COLOURS["green"])).save(path)
    (told,) = infer(colours, [path], threads=1)
    with msn_deploy.load(str(colours), threads=1) as model:
        answers = [model(given) for given in (path, str(path), pixels(COLOURS["green"]), Image.open(path))]
        assert repr(model).endswith("colours.onnx: classification, 4x4 rgb>")
        assert model.info.classes == tuple(COLOURS)
    assert label(answers[0]) == "green"
    assert [answer.to_json() for answer in answers] == 4 * [told.answer.to_json()]


def test_grey_deep_and_transparent_pictures(colours, tmp_path):
    Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)).save(tmp_path / "deep.png")  # of 12 bits
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear.png")
    with msn_deploy.load(colours, threads=1) as model:
        grey = np.full((4, 4), round(255 * 3000 / 4095), dtype=np.uint8)
        assert model(tmp_path / "deep.png").to_json() == model(grey).to_json() == model(Image.fromarray(grey)).to_json()
        assert model(tmp_path / "clear.png").to_json() == model(np.full((4, 4), 255, np.uint8)).to_json()


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 3), np.float32), ((4, 4, 4), np.uint8), ((4,), np.uint8)])
def test_arrays_that_are_no_picture_are_refused(colours, shape, dtype):
    with msn_deploy.load(colours, threads=1) as model, pytest.raises(InputError, match="pixels are uint8"):
        model(np.zeros(shape, dtype))


def test_files_that_cannot_be_read_are_input_errors(colours, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    with msn_deploy.load(colours, threads=1) as model:
        for path in (tmp_path / "bad.png", tmp_path / "missing.png"):
            with pytest.raises(InputError):
                model(path)


def test_a_network_without_a_task_gives_arrays(colours):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(colours)
    told = replace(msn_deploy.load(colours, threads=1).info, task="", classes=())
    onnx.helper.set_model_props(proto, {METADATA_KEY: told.to_json()})
    onnx.save(proto, colours)
    with msn_deploy.load(colours, threads=1) as model:
        assert model(pixels((255, 255, 255))).arrays["y"].shape == (4,)


def test_eight_threads_get_their_own_answers(colours):
    names = [name for name in COLOURS for _ in range(8)]
    with msn_deploy.load(colours, threads=1) as model, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: label(model(pixels(COLOURS[name]))), 8 * names))
    assert found == 8 * names


@pytest.mark.parametrize(("alone", "most"), [(True, 1), (False, 2)])
def test_only_an_engine_runs_one_at_a_time(colours, alone, most):
    opened, inside, seen, both = open_image_model(colours, 1), [], [], threading.Barrier(2)

    def run(batch):
        inside.append(1)
        seen.append(len(inside))
        try:
            both.wait(0.2)
        except threading.BrokenBarrierError:
            both.reset()
        inside.pop()
        return opened.run(batch)

    model = loading.Model(replace(opened, run=run, one_at_a_time=alone))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(model, 2 * [pixels(COLOURS["red"])]))
    assert max(seen) == most
