"""Valid files of every kind that the project reads, mutated, given to its commands, and judged by what comes of it.

    PYTHONPATH=benchmarks python -m fuzz [--inputs N] [--seed N] [--only INDEX,...] [--kinds A,B] [--out FILE]

values      what stands where something else should: numbers, texts, nests
mutations   a file of any format, changed in a few places
datasets    a small data set of each format
seeds       small artifacts of each kind, made once
kinds       which command lines meet which files, and which of these are mutated
child       one command line in a forked process with bounds on memory and time
judge       what is wrong with what it did
campaign    all of that for thousands of inputs, resumably
"""
