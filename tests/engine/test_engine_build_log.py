from __future__ import annotations

import pytest

from msn_deploy.engine.build_log import PhaseShare, shorten


def test_messages_are_cut_to_what_happened():
    text = "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot do it. "
    text += "In run at /_src/a.cpp:2)"
    assert shorten(text) == "Cannot do it"
    assert shorten("a\n  b" + "c" * 500, 20) == "a bccccccccccc [...]"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        # 10.3.0's own bindings over an engine of another release
        ("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
         "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 239, Serialized Engine "
         "Version: 240)",
         "Version tag does not match. Note: Current Version: 239, Serialized Engine Version: 240"),
        # 8.5.2 and 8.6: NVIDIA/TensorRT#3898, #2915; linClubs/YOLOv8-ROS-TensorRT#13; lix19937/tensorrt-insight#65
        ("1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error Code 1: Serialization (Serialization "
         "assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: "
         "236, Serialized Engine Version: 237)",
         "Version tag does not match. Note: Current Version: 236, Serialized Engine Version: 237"),
        ("1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (Serialization assertion "
         "plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.)",
         "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed"),
        ("4: [runtime.cpp::deserializeCudaEngine::65] Error Code 4: Internal Error (Engine deserialization failed.)",
         "Engine deserialization failed"),
        ("[stdArchiveReader.cpp::nvinfer1::rt::StdArchiveReader::StdArchiveReaderInitCommon::46] Error Code 1: "
         "Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
         "Magic tag does not match"),
        # 10.7, 10.14: what TensorRT says of plans of other versions and devices
        ("IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible with "
         "this version of TensorRT, expecting library version 10.14.1.48 got 10.3.0.30, please rebuild. In "
         "checkEngineVersionCompatible at /_src/runtime/api/engine.cpp:871)",
         "The engine plan file is not compatible with this version of TensorRT, expecting library version 10.14.1.48 "
         "got 10.3.0.30, please rebuild"),
        # 10.x at work
        ("IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, condition: "
         "mContext.profileObliviousBindings.at(profileObliviousIndex) != nullptr. Address is not set for input tensor "
         "input. Call setInputTensorAddress or setTensorAddress before enqueue/execute.)",
         "Address is not set for input tensor input. Call setInputTensorAddress or setTensorAddress before "
         "enqueue/execute"),
        ("IExecutionContext::enqueueV3: Error Code 1: Myelin ([executor.cpp:864: myelinGraphLoad] Called with an "
         "already loaded binary graph. In updateAndLoadGraph at /_src/graphContext.cpp:118)",
         "Called with an already loaded binary graph"),
        ("IExecutionContext::enqueueV3: Error Code 1: Myelin ([::0] Platform (Cuda) error In "
         "nvinfer1::rt::MyelinRunnerBase::executeMyelinGraph at runtime/myelin/runner.cpp:778)",
         "Platform (Cuda) error"),
        ("ICudaEngine::createExecutionContext: Error Code 1: Cuda Runtime (invalid resource handle)",
         "Cuda Runtime (invalid resource handle)"),
        ("IExecutionContext::~IExecutionContext: Error Code 1: Cuda Runtime (an illegal memory access)",
         "Cuda Runtime (an illegal memory access)"),
        ("6: The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 8.9, "
         "please rebuild.",
         "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 8.9, please "
         "rebuild"),
        # What other libraries say stays: "Name: text" without TensorRT's colons, numbers, text in brackets.
        ("RuntimeError: no kernel (sm_87)", "RuntimeError: no kernel (sm_87)"),
        ("3: of 4 images", "3: of 4 images"),
        ("conv1: 3 channels, [4] expected", "conv1: 3 channels, [4] expected"),
    ],
)  # fmt: skip
def test_what_each_release_says_is_cut_to_what_happened(text, short):
    """The class and function that speak, the number of the error, the position in the source: of any class."""
    assert shorten(text) == short


def test_a_phase_fills_the_step_of_its_parent_and_never_falls():
    share = PhaseShare()
    share.start("all", None, 2)
    share.start("first", "all", 4)
    share.step("first", 0)
    assert share.value() == pytest.approx(0.125)
    share.step("first", 3)
    share.finish("first")
    share.step("all", 0)
    assert share.value() == pytest.approx(0.5)
    share.start("late", "all", 10)
    share.step("late", 4)
    assert share.value() == pytest.approx(0.75)
    share.start("later", None, 100)
    share.finish("late")
    assert share.value() == pytest.approx(0.75)
    share.step("unknown", 3)
