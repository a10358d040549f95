# Everything on a fresh machine with Python 3.10 or newer:   make demo   |   make test
# The first of them downloads several GB of packages into .venv, once.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
FAMILY ?= nfnet
# Test processes: as many as there are cores.
JOBS ?= auto
PYTEST := $(PY) -m pytest -q -n $(JOBS)

.PHONY: demo demo-fixres new-head test test-slow test-all lint faults fuzz search check gpu-test gpu clean

demo: $(VENV)/ready
	$(PY) -m bench run --family $(FAMILY) --crops 1,2,5,10,20

# FixRes and FixEfficientNet on the demo data: their tables and claims, as in analysis/demo/tables; half an hour.
demo-fixres: $(VENV)/ready
	sh analysis/demo/fixres.sh $(PY) runs/fixres

# A new head for other classes, from pictures to a scored checkpoint: EfficientNet-Lite0, trained on ImageNet, frozen.
HEAD ?= runs/new-head
new-head: $(VENV)/ready
	$(PY) -m pipelines.data.textures $(HEAD)/textures
	$(PY) -m bench finetune --model tf_efficientnet_lite0 --weights pip --new-head --data $(HEAD)/textures/train --img-size 224 --device cpu --out $(HEAD)/tuned
	$(PY) -m bench run --model tf_efficientnet_lite0 --checkpoint $(HEAD)/tuned/model.safetensors --data $(HEAD)/textures/test --policies CC,4RC --no-throughput --device cpu --yes --out $(HEAD)/scored

# The quick tests, five minutes on two cores.
test: $(VENV)/ready
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/ready
	$(PYTEST) -m slow

# Every test.
test-all: $(VENV)/ready
	$(PYTEST)

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Damaged files of every kind through every backend that works here; about two minutes.
faults: $(VENV)/ready
	$(PY) tests/stress/faults.py

# Files that the suite reads, damaged 2,000 times each: labels, records, checkpoints, caches, tables; about an hour.
fuzz: $(VENV)/ready
	$(PY) -m tests.stress.fuzz

# Five searches of the demo networks, each checked on fresh images and against an exhaustive search; about two hours.
search: $(VENV)/ready
	$(PY) -m tests.stress.search

check: lint test

# On a machine with an NVIDIA GPU and this project's packages already installed: the tests that need it.
gpu-test:
	$(PYTHON) -m pytest -q -m gpu

# The same machine: everything that only a GPU can show, most important first; call it again to continue.
gpu:
	$(PYTHON) -m bench compare gpu

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
