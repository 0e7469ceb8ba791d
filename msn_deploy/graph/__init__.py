"""From a torch network to one exactly folded ONNX graph, with its certificate: every step a function on graphs.

export -> clean -> fold (rules, operators) -> certificate (evaluate); simplify and ladder come behind. Nothing is
imported here.
"""
