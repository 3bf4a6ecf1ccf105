# Every target sets up what it needs: a virtual environment in .venv, from the package registry alone.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data

.PHONY: setup demo test test-slow test-faults matrix mutants check real peers clean
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) sh setup.sh

demo: setup  ## draw scenes, build shards, train two processes, evaluate, write the report
	@$(BIN)/shardclip demo

test: setup  ## the whole suite but its long forms; under 20 minutes on 2 cores
	@$(BIN)/python -m pytest -q -m "not slow and not faults" -n 2 --dist worksteal --cov --cov-report=term

test-slow: setup  ## the exactness suite in full
	@$(BIN)/python -m pytest -q -m slow

test-faults: setup  ## kills, flips, full disks
	@$(BIN)/python -m pytest -q -m faults

matrix: setup  ## every objective on every path against its paper; the table goes into docs/exactness.md and README.md
	@PYTHONPATH=tests $(BIN)/python -m gradient_matrix

mutants: setup  ## one-place changes of the product, tried against the tests of their room: an hour
	@.venv/bin/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[mutants]'
	@PYTHONPATH=tests $(BIN)/python -m mutants

check: setup  ## format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

real: setup  ## real photographs: build, train and evaluate into runs/flickr8k_sample
	@sh launch/real.sh $(DATA)

clean:
	rm -rf .venv .peers build *.egg-info

peers: setup  ## open_clip, img2dataset and what they need, into .peers: for tests/peers and benchmarks; mteb into .venv
	@.venv/bin/uv pip install --quiet --python $(BIN)/python --target .peers --no-deps --requirement benchmarks/peers.txt
	@.venv/bin/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[mteb]'
	@.venv/bin/uv pip install --quiet --python $(BIN)/python --target .peers --no-deps ffcv==1.0.2 \
	|| echo "FFCV could not be installed (see above); benchmarks/loader.py skips it. It needs a C++ compiler, pkg-config and the" \
	"headers of OpenCV and libjpeg-turbo (Debian: apt-get install --no-install-recommends libopencv-dev libturbojpeg0-dev)."
