"""`export` of checkpoints, of networks of one's own and of ONNX files."""

import json

import pytest

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.model_info import METADATA_KEY, info_from_json

pytestmark = pytest.mark.slow


def test_export_reports_operators_and_parity(ok, run_folder, tmp_path):
    import onnx

    out = tmp_path / "new folder" / "net.onnx"
    outcome = ok("export", run_folder / "cnn3_msn.safetensors", "--out", out, "--json", "-")
    result = json.loads(outcome.out)
    assert result["folded"] is True
    assert result["operators"]["Conv"] == 3
    assert "BatchNormalization" not in result["operators"]
    assert [rung["stage"] for rung in result["ladder"]] == ["layers folded", "onnx", "graph folded", "simplified"]
    assert all(rung["passed"] and rung["same_class"] == 1 and rung["worst"] < 1e-3 for rung in result["ladder"])
    assert [norm["rule"] for norm in result["certificate"]["norms"]] == ["into-weight"] * 3
    assert result["bytes"] == out.stat().st_size
    assert out.read_bytes() == (run_folder / "cnn3_msn.onnx").read_bytes()  # one checkpoint, one file
    model = onnx.load(out)
    info = info_from_json(next(each.value for each in model.metadata_props if each.key == METADATA_KEY), source="it")
    assert (info.net, info.norm, info.precision, info.folded) == ("cnn3", "msn", "fp32", True)


def test_unfolded_export_keeps_its_norms(run_folder):
    operators = read_sidecar(run_folder / "cnn3_bn.unfolded.onnx").facts["operators"]
    assert operators["BatchNormalization"] == 3
    assert "BatchNormalization" not in read_sidecar(run_folder / "cnn3_bn.onnx").facts["operators"]


def test_export_with_a_batch_and_of_an_onnx_file(ok, run_folder, tmp_path):
    import onnx

    for batch, wanted in (("4", 4), ("dynamic", 0)):
        out = tmp_path / f"{batch}.onnx"
        ok("export", run_folder / "cnn3_bn.safetensors", "--batch", batch, "--out", out)
        assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_value == wanted
    ok("export", tmp_path / "4.onnx", "--out", tmp_path / "again.onnx")
    assert read_sidecar(tmp_path / "again.onnx").parents[0].sha256 == sha256_of(tmp_path / "4.onnx")


def test_export_of_a_network_of_ones_own(ok, run_folder, tmp_path):
    from safetensors.torch import save_file

    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))\n"
    )
    scope: dict = {}
    exec(source.read_text(), scope)  # the same code that the command runs
    save_file(scope["net"]().state_dict(), tmp_path / "mine.safetensors")
    out = tmp_path / "mine.onnx"
    spec = f"{source}:net"
    ok("export", spec, "--weights", tmp_path / "mine.safetensors", "--input-shape", "1,3,8,8", "--out", out)
    side = read_sidecar(out)
    assert {parent.role: parent.sha256 for parent in side.parents} == {
        "source": sha256_of(source),
        "weights": sha256_of(tmp_path / "mine.safetensors"),
    }
    assert "BatchNormalization" not in side.facts["operators"]


def test_no_certificate_of_an_older_model_is_left(ok, run_folder, tmp_path):
    source, out = run_folder / "cnn3_bn.safetensors", tmp_path / "net.onnx"
    ok("export", source, "--out", out)
    assert (tmp_path / "net.fold.json").is_file()
    ok("export", source, "--no-fold", "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]


def test_export_says_which_sigma_is_furthest_off(capsys):
    from msn_deploy.cli.export import _say_folds
    from msn_deploy.graph.certificate import Certificate, CertifiedNorm

    def norm(name, **sigma):
        return CertifiedNorm(norm=name, operator="", rule="into-weight", difference=0.0, of=1.0, **sigma)

    norms = (norm("a", sigma=1.99, sigma_svd=2.0), norm("b", sigma=1.8, sigma_svd=2.0), norm("c"))
    _say_folds(Certificate(norms=norms, output=norm("y")))
    assert "off by 10.00% at most: in layer b it is 1.8, the largest singular value is 2\n" in capsys.readouterr().out
    _say_folds(Certificate(norms=norms[2:], output=norm("y")))
    assert "sigma" not in capsys.readouterr().out


def test_export_of_a_file_that_takes_bytes(ok, run_folder, tmp_path):
    import onnx

    out, source = tmp_path / "bytes.onnx", run_folder / "cnn3_msn.onnx"
    outcome = ok("export", source, "--uint8-input", "--uint8-layout", "nhwc", "--out", out)
    assert "\n  images     stretched to 28x28, bilinear; grey, NHWC; 0 to 255 as they are\n" in outcome.out
    assert "\n  in graph   (" in outcome.out
    assert "preparation" not in outcome.err
    given = onnx.load(out).graph.input[0].type.tensor_type
    assert given.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in given.shape.dim] == [1, 28, 28, 1]
    result = json.loads(ok("export", source, "--uint8-input", "--out", out, "--json", "-").out)
    assert result["in_graph"]["mean"] != [0.0]
    assert result["preprocess"]["mean"] == [0.0]
    accuracy = [json.loads(ok("eval", each, "--json", "-").out)["accuracy"] for each in (source, out)]
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize(
    ("source", "beside"),
    [
        ("runs/net.safetensors", "runs/net.onnx"),
        ("a b/net.v2.safetensors", "a b/net.v2.onnx"),
        ("nets/my_net.py:build", "nets/my_net.onnx"),
        ("other.onnx", "other.folded.onnx"),
    ],
)
def test_the_file_lies_beside_its_source_and_never_over_it(source, beside):
    from msn_deploy.pipeline.export import beside as made

    assert str(made(source)) == beside
