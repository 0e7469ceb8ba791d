"""From a torch network to one exactly folded ONNX graph, with its certificate: every step a function on graphs.

export -> clean -> fold (affine, rules, edits, operators, reorder) -> certificate (evaluate) -> simplify. Nothing is
imported here.
"""
