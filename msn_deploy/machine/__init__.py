"""What this machine is, what it can do, and whether it is fit to measure: probe, clocks, targets, doctor."""
