# Two commands for a fresh machine with Python 3.11 or newer: `make study` and `make test`. ARGS passes options on.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

.PHONY: help study test test-all lab check clean
.DEFAULT_GOAL := help

help:
	@echo "make study     install into $(VENV) and run the digits study (about 10 minutes on 2 cores)"
	@echo "make test      install and run the tests"
	@echo "make test-all  the same, long tests included"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make check     formatting, lint and notebooks without outputs"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): a few minutes and about 6 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,baselines,dev]"
	@touch $@

study: $(VENV)/installed
	@$(BIN)/rdd study $(ARGS)

test: $(VENV)/installed
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/installed
	@$(BIN)/python -m pytest $(ARGS)

lab: $(VENV)/installed
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

clean:
	rm -rf $(VENV)
