# make demo: trains, evaluates, exports and verifies LMA-ResNet-18 on the embedded digits, in a few minutes on a CPU
# make check: lint, types and the tests without processes and whole networks, for the inner loop
# make test: every check that CI runs
# make docs: the documentation site, in build/docs; its pages are executed, and warnings are errors
# make matrix: a short check on Python 3.11 to 3.13 with the oldest and the newest packages that are allowed
# make bench: the speed of the main parts against benchmarks/baseline.json

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/digits

.PHONY: demo check test lint docs matrix bench clean

demo: $(VENV)/demo
	$(BIN)/python -m lma_jax.train --config configs/digits.py --workdir $(RUN)
	$(BIN)/python -m convert.to_torch --checkpoint $(RUN) --output $(RUN)/resnet18_lma.safetensors
	$(BIN)/python -m convert.verify --checkpoint $(RUN) --weights $(RUN)/resnet18_lma.safetensors
	$(BIN)/python -m lma_jax.evaluate --checkpoint $(RUN)
	@echo
	@echo "network in JAX      $(RUN)/checkpoints"
	@echo "network in PyTorch  $(RUN)/resnet18_lma.safetensors"
	@echo "training curves     $(RUN)/curves.png"
	@echo "training images     $(RUN)/examples.png"
	@echo "metrics             $(RUN)/metrics.jsonl, $(RUN)/tensorboard"

test: lint docs
	$(BIN)/pytest

check: lint
	$(BIN)/pytest -m "not process and not deep"

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs
	rm -rf build/docs
	$(BIN)/sphinx-build --quiet --jobs 2 --fail-on-warning --keep-going docs build/docs

matrix:
	$(PYTHON) tests/matrix.py

bench: $(VENV)/test
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) .cache build runs dist

# The tested versions, into a virtual environment that all targets share.
$(VENV)/demo: WHAT := --editable ".[train,torch]"
$(VENV)/test: WHAT := --editable ".[train,fast,torch,flops,onnx]" --group test
$(VENV)/docs: WHAT := --editable ".[train,torch]" --group docs
$(VENV)/demo $(VENV)/test $(VENV)/docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(WHAT)
	touch $@
