# make run [ARGS="recipe=NAME key=value"]: set up and carry out a SAMI run (default: recipe=sami_smol).
# make bench: what docs/performance.md measures, in about half an hour on two quiet cores.
# make test: set up and run every test. make test-quick: those that are not marked slow. make checks: format, lint, types.

# Any Python that runs makes the environments, and finds for itself the one that they need. A shim of pyenv may not run.
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null && echo $$python && break; done), \
	$(shell command -v uv > /dev/null && echo uv run --no-project --python 3.12 python), \
	$(error Python = (not found): install Python 3.11 or 3.12, or uv))
TRAIN := .venv/train/bin/python
SOURCES := sami_nemo launcher_scripts tools tests containers

.PHONY: run bench test test-quick checks format setup setup-train clean-environments

run: setup
	@$(TRAIN) launcher_scripts/main.py $(ARGS)

test: setup
	@$(TRAIN) -m pytest $(ARGS)

test-quick: setup
	@$(TRAIN) -m pytest -m "not slow" $(ARGS)

bench: setup
	@$(TRAIN) -c "from pathlib import Path; from sami_nemo.base_model.prepare import prepare_smollm2 as get; \
	get(Path('models/smollm2-135m'), num_experts=None)"
	@$(TRAIN) tools/bench_train.py $(ARGS)
	@$(TRAIN) -W ignore tools/bench_export.py
	@.venv/generate/bin/python tools/bench_generate.py

checks: setup-train
	$(TRAIN) -m ruff format --check $(SOURCES)
	$(TRAIN) -m ruff check $(SOURCES)
	$(TRAIN) -m mypy

format: setup-train
	$(TRAIN) -m ruff format $(SOURCES)
	$(TRAIN) -m ruff check --fix $(SOURCES)

setup:
	@$(PYTHON) tools/setup_environments.py

setup-train:
	@$(PYTHON) tools/setup_environments.py train

clean-environments:
	rm -rf .venv
