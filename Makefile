# Two commands for a fresh machine with Python 3.11 or newer: `make study` and `make test`. ARGS passes options on.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

.PHONY: help study test test-all lab check clean
.DEFAULT_GOAL := help

help:
	@echo "make study     install into $(VENV) and run the digits study (about 17 minutes on 2 cores)"
	@echo "make test      install and run the tests, those in a browser too where there is one"
	@echo "make test-all  the same, long tests included"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make check     formatting, lint and notebooks without outputs"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): a few minutes and about 6 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,baselines,cluster,dev]"
	@touch $@

# The browser tests want a Chromium. Where Debian's can be installed, once, it is; where not, they say why they are skipped.
$(VENV)/browser: | $(VENV)/installed
	@if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null && \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium for the browser tests: under a minute and 400 MB, once."; \
		get="timeout 300 apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15"; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ $$get install -y --no-install-recommends chromium || { $$get update && $$get install -y --no-install-recommends chromium; }; } \
			</dev/null >/dev/null 2>&1 || echo "It could not be installed; the browser tests will be skipped."; \
	fi
	@touch $@

study: $(VENV)/installed
	@$(BIN)/rdd study $(ARGS)

test: $(VENV)/installed $(VENV)/browser
	@$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/installed $(VENV)/browser
	@$(BIN)/python -m pytest $(ARGS)

lab: $(VENV)/installed
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

clean:
	rm -rf $(VENV)
