"""`infer`: an answer for every image that can be read."""

import json

import pytest


@pytest.mark.parametrize("name", ["cnn3_msn.safetensors", "cnn3_msn.onnx", "cnn3_msn.int8.onnx"])
def test_infer_reads_png_files(ok, run_folder, digit_images, name):
    answers = [json.loads(line) for line in ok("infer", run_folder / name, *digit_images, "--json").out.splitlines()]
    assert [answer["image"] for answer in answers] == [str(path) for path in digit_images]
    right = sum(answer["label"] == path.stem[-1] for answer, path in zip(answers, digit_images, strict=True))
    assert right >= 0.8 * len(digit_images)
    assert all(0 < answer["score"] <= 1 and answer["latency_ms"] > 0 for answer in answers)


def test_infer_prints_one_row_per_image(ok, run_folder, digit_images):
    outcome = ok("infer", run_folder / "cnn3_msn.onnx", *digit_images[:3])
    assert [len(outcome.out.splitlines()), outcome.err] == [3, ""]


def test_infer_tells_what_it_could_not_read_and_answers_the_rest(cli, run_folder, digit_images, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    outcome = cli(
        "infer", run_folder / "cnn3_msn.onnx", digit_images[0], tmp_path / "text.png", digit_images[1], "--json"
    )
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert ["label" in answer for answer in answers] == [True, False, True]
    assert "text.png is not a readable image" in answers[1]["error"]
    assert outcome.code == 2
    assert "1 of 3 images failed, the first: " in outcome.err
