"""What a network's numbers mean: from an output to a label, and from labels to a metric."""
