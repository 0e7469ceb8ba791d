"""An ONNX file, opened once and trusted: its bytes, graph, named inputs and outputs, metadata, sizes and cost."""
