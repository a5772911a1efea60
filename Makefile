# One place for torch: the CPU build; with a GPU, `make TORCH=torch test`.
TORCH ?= torch==2.13.0
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
DEMO := runs/demo
SUITE := runs/suite

.PHONY: help demo suite test lint benchmarks clean

help:
	@echo "make demo        train NadamW, +LAWA and +EMA on two small real tasks (a few minutes), print who was first"
	@echo "make suite       the same on all seven miniature workloads (7 minutes on two cores)"
	@echo "make test        run the tests"
	@echo "make lint        ruff, mypy, hadolint, shellcheck"
	@echo "make benchmarks  cost of averaging beside other libraries and the memory-traffic limit"
	@echo "make clean       remove the virtual environment"

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -e .[torch,jax,miniperf,analysis,launching,trainers,dev] $(TORCH)  # the one named above stays
	touch $@

$(VENV)/ready-benchmarks: $(VENV)/ready
	$(PY) -m pip install --quiet -e .[benchmarks]
	touch $@

demo: $(VENV)/ready
	$(PY) -m scripts.suite --experiment_dir=$(DEMO) --workloads=mini_criteo1tb,mini_imagenet_vit
	$(PY) -m scripts.report --runs=$(DEMO)

suite: $(VENV)/ready
	$(PY) -m scripts.suite --experiment_dir=$(SUITE)
	$(PY) -m scripts.report --runs=$(SUITE)

test: $(VENV)/ready
	$(PY) -m pytest -n 2

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint docker/Dockerfile
	$(VENV)/bin/shellcheck docker/*.sh .ci/run

benchmarks: $(VENV)/ready-benchmarks
	$(PY) -m benchmarks.averaging_cost
	$(PY) -m benchmarks.nadamw_step
	$(PY) -m benchmarks.training_step
	$(PY) -m benchmarks.growth
	$(PY) -m benchmarks.trainers

clean:
	rm -rf $(VENV)
