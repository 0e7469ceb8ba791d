"""`demo` from end to end, on the small networks: the files it leaves, and its table."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_demo_leaves_the_whole_chain(ok, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "demo"
    outcome = ok("demo", "cnn3_msn", "--epochs", 2, "--seconds", 0.6, "--out", out)
    for name in ("cnn3_bn", "cnn3_msn"):
        for suffix in ("safetensors", "onnx", "fp16.onnx", "int8.onnx", "fp32.engine", "fp16.engine", "int8.engine"):
            assert (out / f"{name}.{suffix}").stat().st_size > 10_000, suffix
        assert (out / f"{name}.int8.onnx").stat().st_size < 0.35 * (out / f"{name}.onnx").stat().st_size
    assert (out / "cnn3_bn.unfolded.onnx").is_file()
    result = json.loads((out / "bench.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == ["BN unfolded", "BN folded", "MSN folded"]
    assert result["baseline"] == "BN unfolded"
    page = (out / "report.html").read_text()
    table = [line.split() for line in outcome.out.splitlines()]
    rows = [row for row in table if row[:1] in (["BN"], ["MSN"]) and any(cell.endswith("%") for cell in row)]
    assert [" ".join(row[:2]) for row in rows] == [
        "BN checkpoint",
        "BN ONNX",
        "BN ONNX",
        "BN FP16",
        "BN INT8",
        "MSN checkpoint",
        "MSN ONNX",
        "MSN FP16",
        "MSN INT8",
    ]
    for row in rows:
        accuracy = next(cell for cell in row if cell.endswith("%"))
        assert 80 < float(accuracy.rstrip("%")) <= 100
        assert accuracy.rstrip("%").rstrip("0").rstrip(".")[:4] in page
    *_, wrote, following = outcome.err.splitlines()
    assert (wrote.startswith(f"wrote {out}/ ("), following) == (True, f"next: msn-deploy verify {out}")
    assert all(finding["verdict"] == "ok" for finding in json.loads(ok("verify", out, "--json").out))
    assert "BN: training cnn3_bn for 2 epochs on digits" in outcome.err


@pytest.mark.parametrize("recipe", ["detector_msn", "gan_msn"])
def test_the_demo_is_of_classifiers(cli, tmp_path, recipe):
    outcome = cli("demo", recipe, "--out", tmp_path / "demo")
    assert (outcome.code, "recipes" in outcome.err) == (2, True)
    assert not (tmp_path / "demo").exists()
