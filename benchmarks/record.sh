#!/usr/bin/env bash
# Measure what README and docs claim, on this machine, and put the raw results where they are generated from.
# Takes a few minutes; nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/.venv/bin"
machine=$("$bin/python" -c "from msn_deploy.machine import environment as e; print(e.machine_name(e.read_environment()))")
results="$PWD/benchmarks/results/$machine" # readme.py says which machine's are shown
mkdir -p "$results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$work" && "$bin/msn-deploy" demo --out demo) >"$results/demo.txt" 2>&1
cp "$work/demo/bench.json" "$results/demo-bench.json"
(cd "$work/demo" && "$bin/msn-deploy" bench vgg7_msn.onnx vgg7_msn.int8.onnx --seconds 5 --json int8.json)
cp "$work/demo/int8.json" "$results/int8-on-cpu.json"
"$bin/python" benchmarks/startup.py --out "$results/startup.json"
mkdir "$work/runs" && cp "$work/demo/"vgg7_msn.onnx* "$work/runs"
(cd "$work" && "$bin/msn-deploy" build-engine runs/vgg7_msn.onnx --precision int8 --target orin-nano) \
    >"$results/jetson.txt"
"$bin/python" benchmarks/readme.py
