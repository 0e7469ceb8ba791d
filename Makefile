# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv themselves.
# While working: `make quick`, `make fmt`, and `make docs`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: a fifth of the disk, and minutes, for those that never are.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
ON_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"
TORCH := torch==2.13.0
# Where the CPU build of torch is, and how many seconds to wait for it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_WAIT ?= 15
SCRIPTS := .ci/run $(wildcard benchmarks/*.sh msn_deploy/engine/*.sh msn_deploy/pipeline/bundle_scripts/* tests/container/*.sh)

.PHONY: setup demo quick test gpu-test device-test cuda-test nightly check docs hooks fmt results train-step throughput in-flight overhead control fuzz offline long-run kills peers peers-tasks peers-quantisers networks export-cost \
	backend-tests sweep paper paper-tables tiny-batches norms int8 fp8 qat readme operators container-test jetson-wheels clean

setup: $(VENV)/.installed $(VENV)/.bindings

# torch is pinned, and its CPU build asked for first: without that, pip's default index brings gigabytes of CUDA.
# pyproject.toml keeps the range.
$(VENV)/.torch: Makefile
	@echo "Installing into $(VENV): about 400 MB to download, 1.4 GB on disk. Nothing else on this machine changes."
	$(PYTHON) -m venv $(VENV)
	@echo "1 of 2: PyTorch for CPUs, from $(TORCH_INDEX)"
	$(PIP) --retries 0 --timeout $(TORCH_WAIT) --index-url $(TORCH_INDEX) $(TORCH) || \
		{ echo "That index does not answer. Taking PyTorch from pip's default index, which may bring CUDA (several GB)."; $(PIP) $(TORCH); }
	touch $@

# What a user needs, and the demo.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "2 of 2: msn-deploy, ONNX Runtime, TensorRT-RTX and what they need"
	$(PIP) --editable '.[export,rtx]'
	touch $@

# The group of dependencies for developers needs a recent pip.
$(VENV)/.installed: $(VENV)/.demo
	@echo "Installing the tools for developers: 1.5 GB more on disk."
	$(PIP) --quiet 'pip>=25.1'
	$(PIP) --quiet --editable '.[data,detection,export,rtx,tensorboard]' --group dev
	touch $@

# NVIDIA's bindings of four TensorRT releases, for the tests, and the schema of Triton's configurations, which tritonclient
# holds (without what it needs, to run). Without them those are skipped; the next call tries again.
$(VENV)/.bindings: $(VENV)/.installed tests/engine/trt_bindings.py
	if $(PIP) --no-deps tritonclient && $(BIN)/python tests/engine/trt_bindings.py $(VENV)/bindings; then touch $@; fi

# At most five minutes on two cores after the installation.
demo: $(VENV)/.demo
	$(BIN)/msn-deploy demo --out demo

# Before every commit: what `make test` checks, less the tests that take long.
quick: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

# Two workers whatever the machine: tests that read clocks and memory want a core of their own.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Builds and runs engines, on a machine with an NVIDIA GPU; elsewhere every test is skipped.
gpu-test: setup
	$(PIP) --quiet --editable '.[gpu]'
	$(BIN)/python -m pytest tests/gpu

# pycuda, compiled here with CUDA's nvcc, and cuda-bindings, over a driver without a GPU: minutes, once.
cuda-test: setup
	$(BIN)/python tests/engine/cuda_real.py $(VENV)/cuda --out cuda-packages.json
	$(BIN)/python -m pytest tests/engine/test_engine_cuda_driver.py

# On a Jetson: what could not be proved without one, into device-test.txt, to be sent back (docs/guides/first-run.md).
device-test:
	$(PYTHON) tests/device/collect.py

# More random networks through the fold than `make test` takes.
nightly: setup
	MSN_DEPLOY_RANDOM_GRAPHS=600 $(BIN)/python -m pytest tests/graph/test_graph_fold_random.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/words.py
	$(ON_PATH) shellcheck $(SCRIPTS)
	$(ON_PATH) hadolint Dockerfile.jetson

# The site of docs/, into site/: open site/index.html, or `.venv/bin/zensical serve`.
docs: setup
	$(BIN)/zensical build --strict --clean

# From now on each commit is checked by those tools, on the files in it.
hooks: setup
	$(BIN)/pre-commit install

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Measures again what README and docs show, and fills it in; minutes, on an otherwise idle machine.
results: setup
	benchmarks/record.sh

# The certificate's float64 against ONNX Runtime and onnx's stored outputs, operator by operator: two minutes.
operators: setup
	$(BIN)/python benchmarks/operators.py --out benchmarks/results/xeon-2-cores/operators.json

# Step time and saved memory of each normalisation: an hour on an otherwise idle machine. On one with a GPU, nine minutes:
# python benchmarks/peers/train_step.py --device cuda --out train-step.json
train-step: setup
	$(BIN)/python benchmarks/peers/train_step.py --out train-step.json

# The trainer against a bare loop, its loader against torch's: five minutes on an otherwise idle machine.
throughput: setup
	$(BIN)/python benchmarks/throughput.py --out throughput.json

# Images per second with 1, 2 and 4 queries in flight, by `bench` and by a loop of threads written by hand: half an
# hour on an otherwise idle machine.
in-flight: setup
	$(BIN)/python benchmarks/in_flight.py --out in-flight.json

# What `bench` itself costs per query: a minute on an otherwise idle machine.
overhead: setup
	$(BIN)/python benchmarks/overhead.py --out overhead.json

# Verdicts of `bench` where the truth is known, alone and under load: six minutes on an otherwise idle machine.
control: setup
	$(BIN)/python benchmarks/control.py --out control.json

# Mutated inputs of every kind through every command: 5,000 take an hour on two cores. Stop it at any time and type it again.
# One of them again: make fuzz FUZZ="--seed 1 --only 123"
fuzz: setup
	PYTHONPATH=benchmarks $(BIN)/python -m fuzz $(FUZZ)

# Every command under strace, which has to be installed: does any connect to anything? Five minutes.
offline: setup
	$(BIN)/python benchmarks/offline.py

# Memory and open files of `infer` over 20,000 images and of `bench` for 10 minutes: a quarter of an hour. Less:
# make long-run LONG="--images 2000 --minutes 1 --out long-run.json"
long-run: setup
	$(BIN)/python benchmarks/long_run.py $(LONG)

# The graphs of other exporters against ours, and the time of an export: half an hour on an otherwise idle machine.
peers: setup
	$(BIN)/python benchmarks/peers/graphs.py --out graphs.json
	$(BIN)/python benchmarks/peers/export_time.py --out export-time.json

# `eval` and boxes against an independent script: YOLOv8n of ultralytics and a segmentation network of torchvision, trained
# here, half an hour. What is trained below runs/task-peers is kept: remove it to train anew.
peers-tasks: setup
	$(BIN)/python benchmarks/tasks/peers.py --out benchmarks/results/xeon-2-cores/task-peers.json
	$(BIN)/python benchmarks/readme.py

# `calibrate` and training under INT8 against the quantisers of ONNX Runtime and of NVIDIA's Model-Optimizer, which it installs
# beside the project's own environment; trains on digits, half an hour. One alone: make peers-quantisers QUANTISERS=mobile
peers-quantisers: setup
	$(BIN)/python benchmarks/peers/quantisers.py $(QUANTISERS)
	$(BIN)/python benchmarks/readme.py

# Networks that others wrote, through everything: hours. Stop it at any time and type it again.
# Rows anew: make networks NETWORKS="timm_resnet18 own_stereo"
networks: setup
	$(BIN)/python benchmarks/networks/run.py $(NETWORKS)

# Time and memory of `export` against torch's exporter with onnxsim: a quarter of an hour on an otherwise idle machine.
export-cost: setup
	$(BIN)/python benchmarks/networks/export_cost.py

# ONNX's own tests through `export`: ten minutes.
backend-tests: setup
	$(BIN)/python benchmarks/backend_tests.py

# Kills every command at random moments and lets pairs of runs write the same files: an hour on two cores, at low priority.
# Stop it at any time and type it again.
kills: setup
	nice -n 10 $(BIN)/python benchmarks/kills.py $(KILLS)

# Modules, functions and idioms of torch through `export`: an hour on two cores. Stop it at any time and type it again.
# After a change: make sweep SWEEP=--failed, or SWEEP="--again --only REGEX".
sweep: setup
	$(BIN)/python benchmarks/sweep.py $(SWEEP)
	$(BIN)/python benchmarks/readme.py

# Trains every table of accuracy that is not there yet: hours on two cores. Stop it at any time and type it again.
# MNIST lies elsewhere: make paper PAPER="--data mnist=FOLDER". One table alone: make paper TABLES=mnist-cnn3
paper: setup
	$(BIN)/python benchmarks/paper.py $(TABLES) $(PAPER)
	$(BIN)/python benchmarks/gan.py
	$(BIN)/python benchmarks/cards.py
	$(BIN)/python benchmarks/readme.py

# The paper's own tables, where SVHN and CIFAR10 are: days, unless there is a GPU. It says how long before it starts.
# How long alone: make paper-tables TABLES=--estimate. Stop it at any time and type it again.
paper-tables: setup
	$(BIN)/python benchmarks/paper_tables.py $(TABLES) $(PAPER)

# Batches of 1 to 32, one norm beside the other: six hours on one core. Stop it at any time and type it again.
tiny-batches: setup
	$(BIN)/python benchmarks/tiny_batches.py $(TINY)
	$(BIN)/python benchmarks/readme.py

# Each norm's exported graph and saved memory; on an idle machine also: make norms NORMS=--latency
norms: setup
	$(BIN)/python benchmarks/norms.py $(NORMS)
	$(BIN)/python benchmarks/readme.py

# What FP16 and INT8 cost in accuracy, of the trainings that `make paper` left below runs/paper: an hour on two cores.
int8: setup
	$(BIN)/python benchmarks/int8.py $(PAPER)
	$(BIN)/python benchmarks/int8_steps.py
	$(BIN)/python benchmarks/readme.py

# What FP8 costs in accuracy, and which convolutions compute in it by the listing of TensorRT-RTX: trains four networks, minutes
# on an otherwise idle machine. One network alone: make fp8 FP8=VGG7
fp8: setup
	$(BIN)/python benchmarks/fp8.py $(FP8)
	$(BIN)/python benchmarks/readme.py

# What training under INT8 wins back on hard cases; trains for hours, and can be stopped and typed again. One case: make qat QAT=mobile
qat: setup
	$(BIN)/python benchmarks/qat.py $(QAT)
	$(BIN)/python benchmarks/qat.py --engines
	$(BIN)/python benchmarks/readme.py

readme: setup
	$(BIN)/python benchmarks/cards.py
	$(BIN)/python benchmarks/readme.py

# Dockerfile.jetson built and run for arm64 by emulation: a quarter of an hour, root, and the tools that it names.
container-test: setup
	tests/container/run.sh

# Which wheels msn-deploy[jetson] installs on JetPack 6 and 7: asks the package index, pins Dockerfile.jetson.
jetson-wheels: setup
	$(BIN)/python benchmarks/jetson_wheels.py

clean:
	rm -rf $(VENV) demo dist site
