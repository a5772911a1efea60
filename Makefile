# One place for torch: the CPU build; with a GPU, `make TORCH=torch test`.
TORCH ?= torch==2.13.0
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := torch,jax,miniperf,miniperf-jax,optimizers,text,analysis,launching,trainers,dev
OF_DEMO := torch,demo,analysis
OF_DEMO_IN_JAX := $(OF_DEMO),miniperf-jax
PINNED := --constraint requirements/constraints.txt
# PyTorch always comes by pip, which looks for it on the machine too.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(PY),$(PY) -m pip install)
OF_LIBRARY := -e .[torch,jax,lightning,transformers,cli] cloudpickle flax hypothesis orbax-checkpoint pytest pytest-xdist
NEWEST_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13) python3.13)
FRAMEWORK ?= pytorch
OTHER := $(filter-out pytorch,$(FRAMEWORK))
DEMO := runs/demo$(if $(OTHER),_$(OTHER))
# The demo has an environment of its own size, and takes the whole one where that is set up.
READY_DEMO := $(VENV)/ready$(if $(wildcard $(VENV)/ready),,-demo$(if $(OTHER),-$(OTHER)))
SUITE := runs/suite

.PHONY: help demo suite test test-oldest test-newest test-trainers lint docs lock benchmarks gpu clean

help:
	@echo "make demo        train an MRI and a language model by NadamW, +LAWA and +EMA, three seeds, print who was first (five minutes)"
	@echo "                 make FRAMEWORK=jax demo trains the language model in JAX"
	@echo "make suite       NadamW, +LAWA and +EMA on all eight miniature workloads (some ten minutes on two cores)"
	@echo "make test        run the tests"
	@echo "make test-oldest, make test-newest  the library's tests with the oldest releases it claims; with the newest, on Python 3.13"
	@echo "make test-trainers  the tests with files of other training libraries, in an environment that has those"
	@echo "make lint        ruff, mypy, hadolint, shellcheck"
	@echo "make docs        build the pages and the reference as a site, in site/index.html"
	@echo "make lock        pin in requirements/constraints.txt what setup.cfg resolves to today"
	@echo "make benchmarks  cost of averaging beside other libraries and the memory-traffic limit"
	@echo "make gpu         tests and benchmarks on a GPU, in minutes; make PY=python3 gpu uses a Python that has torch already"
	@echo "make clean       remove the virtual environments"

WANTED := setup.cfg pyproject.toml requirements/data.txt requirements/constraints.txt

$(VENV)/ready: $(WANTED)
	$(call set_up,$(EXTRAS))

$(VENV)/ready-demo: $(WANTED)
	$(call set_up,$(OF_DEMO))

$(VENV)/ready-demo-jax: $(WANTED)
	$(call set_up,$(OF_DEMO_IN_JAX))

# A virtual environment with these extras.
define set_up
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade $(PINNED) pip setuptools
	$(PY) -m pip install --quiet $(PINNED) $(TORCH)
	$(INSTALL) --quiet $(PINNED) --no-build-isolation -e .[$(1)]
	$(PY) -m pip install --quiet --no-deps -r requirements/data.txt
	touch $@
endef

$(VENV)/ready-benchmarks: $(VENV)/ready
	$(INSTALL) --quiet $(PINNED) --no-build-isolation -e .[benchmarks]
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(INSTALL) --quiet $(PINNED) --no-build-isolation -e .[docs]
	touch $@

# A link or a docstring that does not come out right is an error.
docs: $(VENV)/ready-docs
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet -b html docs site
	@echo "the site is in site/index.html"

# Of the newest releases that setup.cfg admits.
lock:
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet --dry-run --ignore-installed --report=$(VENV)-lock/report.json \
	  -e .[$(EXTRAS),benchmarks,docs,test-trainers] $(TORCH) pip setuptools
	$(PYTHON) requirements/lock.py < $(VENV)-lock/report.json > requirements/constraints.txt
	rm -r $(VENV)-lock

# To a little beyond the targets, which lie at a third of 2000 and of 3000 updates. JAX draws other initial weights.
demo: $(READY_DEMO)
ifeq ($(FRAMEWORK),pytorch)
	$(PY) -m scripts.suite --experiment_dir=$(DEMO) --seeds=3 --workloads=mini_fastmri --max_global_steps=720 --evaluations=24
	$(PY) -m scripts.suite --experiment_dir=$(DEMO) --seeds=3 --workloads=mini_finewebedu_lm --max_global_steps=1080 --evaluations=18
else
	$(PY) -m scripts.suite --experiment_dir=$(DEMO) --seeds=3 --workloads=mini_finewebedu_lm --max_global_steps=1500 --evaluations=25 \
	  --framework=$(FRAMEWORK)
endif
	$(PY) -m scripts.report --framework=$(FRAMEWORK) --runs=$(DEMO)

suite: $(VENV)/ready
	$(PY) -m scripts.suite --experiment_dir=$(SUITE)
	$(PY) -m scripts.report --runs=$(SUITE)

test: $(VENV)/ready
	$(PY) -m pytest -n 2

# The library's own, with the oldest releases that setup.cfg claims, and with the newest on a newer Python. Where no
# PyTorch for CPUs is found for them, each takes some 5 GB.
test-oldest test-newest: test-%: .venv-%/ready
	.venv-$*/bin/python -m pytest -n 2 tests/weight_averaging weight_averaging

.venv-oldest/ready: setup.cfg requirements/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet --constraint requirements/oldest.txt $(OF_LIBRARY)
	touch $@

.venv-newest/ready: setup.cfg
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade $(OF_LIBRARY)
	touch $@

# Those that do not install are left out, and their tests skipped: see docs/offline.md.
# PyTorch is named, so that the one that is there stays, and of torchvision and torchaudio those come that fit it.
# Without a GPU their compiled parts may not load, which the tests get around.
test-trainers: $(VENV)/ready-test-trainers
	$(PY) -m pytest -n 2 -m trainers -rs tests/weight_averaging

$(VENV)/ready-test-trainers: $(VENV)/ready requirements/trainers.txt
	$(INSTALL) --quiet $(PINNED) --no-build-isolation $(TORCH) -e .[test-trainers]
	$(PY) -m pip install --quiet --no-deps -r requirements/trainers.txt
	touch $@

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
	$(PY) -m benchmarks.optimizer_step
	$(PY) -m benchmarks.growth
	$(PY) -m benchmarks.trainers
	$(PY) -m benchmarks.jax_averaging_cost

# A Python that is given as PY has all that is needed.
gpu: $(if $(filter-out $(VENV)/bin/python,$(PY)),,$(VENV)/ready-benchmarks)
	$(PY) -m benchmarks.gpu

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest site
