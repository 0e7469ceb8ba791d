"""What every room builds on: errors, atomic artifacts, recipes and suites, the metadata of model files, progress."""
