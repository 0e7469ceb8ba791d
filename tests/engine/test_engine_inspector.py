from __future__ import annotations

import json

import pytest

from msn_deploy.engine.inspector import (
    Layer,
    count_convs,
    layers_from_json,
    layers_from_log,
    memory_from_log,
    not_quantised,
)

ROWS = """Layers:
Name: a, b, LayerType: correlation, Inputs: [ { Name: x, Datatype: Int8, Format: f }], Constants: [ ], Outputs: [ ]
Name: b, LayerType: correlation, Inputs: [ { Name: x, Datatype: Half }], Constants: [ { Datatype: Int8 }], Outputs: []
Name: c, LayerType: CaskConvolution, Inputs: [ { Name: x, Format/Datatype: Thirty-two wide row major Int8 format }], \
Outputs: [ { Name: y, Format/Datatype: Int8 }], ParameterType: Convolution
Name: d, LayerType: maxpool, Inputs: [ { Datatype: Int8 }], Constants: [], Outputs: []
Name: e, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Datatype: Float }]

I/O Tensors:
 Name: x, IOMode: Input"""


def test_the_last_listing_of_the_log_is_read():
    layers = layers_from_log(["Layers:\nName: old, LayerType: kgen", "noise", ROWS])
    assert layers == (
        Layer(name="a, b", kind="correlation", precision="int8"),
        Layer(name="b", kind="correlation", precision="fp16"),
        Layer(name="c", kind="CaskConvolution", precision="int8"),
        Layer(name="d", kind="maxpool", precision="int8"),
        Layer(name="e", kind="kgen", precision=None),
    )
    assert layers_from_log(["no listing"]) == ()


def test_only_convolutions_that_read_int8_are_counted():
    """Not those whose weights alone are INT8, as for Turing, and no pooling."""
    assert count_convs(layers_from_log([ROWS]), "int8") == 2


@pytest.mark.parametrize(
    ("tensor", "precision"),
    [
        ({"Format/Datatype": "Row major linear FP32"}, "fp32"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Datatype": "Int8", "Format": "(NHWC) Channel major"}, "int8"),
        ({"Datatype": "BFloat16"}, "bf16"),
        ({"Datatype": "FP8"}, "fp8"),
        ({"Datatype": "Int32"}, "int32"),
        ({}, None),
    ],
)
def test_types_are_read_in_the_words_of_every_release(tensor, precision):
    row = {"Name": "n", "LayerType": "CaskGemmConvolution", "Inputs": [{"Name": "x", **tensor}]}
    [layer] = layers_from_json(json.dumps({"Layers": [row], "Bindings": ["x"]}))
    assert layer == Layer(name="n", kind="CaskGemmConvolution", precision=precision)


def test_a_convolution_under_another_name_is_told_by_its_parameters():
    row = {"Name": "n", "LayerType": "CaskGemm", "ParameterType": "Convolution", "Inputs": [{"Datatype": "Int8"}]}
    assert count_convs(layers_from_json(json.dumps({"Layers": [row]})), "int8") == 1
    assert count_convs(layers_from_json(json.dumps({"Layers": [{**row, "ParameterType": "Gemm"}]})), "int8") == 0


@pytest.mark.parametrize("text", ["", "null", "[]", '{"Layers": 3}', '{"Layers": [3]}', '{"Layer": []}'])
def test_what_an_inspector_does_not_say_is_not_made_up(text):
    assert layers_from_json(text) == ()


def test_layers_without_details_keep_their_names():
    assert layers_from_json('{"Layers": ["conv0 + act0"]}') == (Layer(name="conv0 + act0", kind="", precision=None),)


def test_memory_is_the_last_total():
    texts = ["Total Weights Memory: 5 bytes", "Total Activation Memory: 77 bytes", "Total Weights Memory: 97156 bytes"]
    memory = memory_from_log(texts)
    assert (memory.weight_memory_bytes, memory.device_memory_bytes) == (97156, 77)
    assert memory_from_log(["Total Host Memory: 5 bytes"]).weight_memory_bytes is None


def test_a_convolution_with_fp8_weights_alone_is_not_one_in_fp8():
    rows = [
        {"Name": name, "LayerType": "correlation", "Inputs": [{"Datatype": reads}], "Constants": [{"Datatype": "FP8"}]}
        for name, reads in (("a", "FP8"), ("b", "Half"))
    ]
    layers = layers_from_json(json.dumps({"Layers": rows}))
    assert (count_convs(layers, "fp8"), count_convs(layers, "int8")) == (1, 0)
    assert [layer.name for layer in not_quantised(layers, "fp8")] == ["b"]
