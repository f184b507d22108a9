# For a fresh machine with Python 3.11 or newer: `make demo`, `make study` and `make test`. ARGS passes options on.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
GPU = runs/cifar10_small
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
STUDY ?= runs/digits

.PHONY: help demo study gpu gpu-study test test-ci test-all test-gpu lab docs check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      install into $(VENV) and draw with the models in the box: runs/demo/photos.png, in seconds"
	@echo "make study     install into $(VENV) and run the digits study (minutes on 2 cores)"
	@echo "make gpu       all that is to be measured on a GPU, IMAGES=a folder with CIFAR-10; what to keep is in runs/gpu/home"
	@echo "make gpu-study the cifar10_small study on a GPU, with ARGS='--set data.download=true'; what to keep is in $(GPU)/home"
	@echo "make test      install and run the tests"
	@echo "make test-ci   the longer ones, of whole studies, notebooks and the browser, that .ci/run adds"
	@echo "make test-all  all of them, the longest included"
	@echo "make test-gpu  the tests that need CUDA, alone"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make docs      the site in site/, with the notebooks that STUDY=$(STUDY) has executed; nothing is trained or fetched"
	@echo "make check     formatting, lint and notebooks without outputs"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): a few minutes and about 6 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,app,baselines,text,lora,docs,dev]"
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

demo: $(VENV)/installed
	@$(BIN)/rdd demo $(ARGS)

study: $(VENV)/installed
	@$(BIN)/rdd study $(ARGS)

# With what Python there is, where nothing can be installed: a machine lent for an hour, without network, WHEELS=a folder
# that docs/gpu_day.py --fetch filled.
gpu:
	@python="$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))"; \
		$$python docs/gpu_day.py --images "$(IMAGES)" $(if $(WHEELS),--wheels "$(WHEELS)") $(ARGS)

gpu-study: $(VENV)/installed
	@test -f $(GPU)-metric.safetensors || $(BIN)/rdd metric-network cifar10_small --out $(GPU)-metric.safetensors $(ARGS)
	@$(BIN)/rdd study --profile cifar10_small --no-notebooks --out $(GPU) --set evaluation.network=$(abspath $(GPU))-metric.safetensors $(ARGS)
	@mkdir -p $(GPU)/home && cp $(GPU)-metric.json $(GPU)/*.csv $(GPU)/*.json $(GPU)/*.png $(GPU)/index.html $(GPU)/checkpoints/*.metrics.jsonl $(GPU)/home
	@du -sh $(GPU)/home

test: $(VENV)/installed $(VENV)/browser
	@$(BIN)/python -m pytest -m "not slow and not ci" $(PARALLEL) $(ARGS)

test-ci: $(VENV)/installed $(VENV)/browser
	@$(BIN)/python -m pytest -m ci $(PARALLEL) $(ARGS)

test-all: $(VENV)/installed $(VENV)/browser
	@$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/installed
	@$(BIN)/python -m pytest -m gpu -n 0 $(ARGS)

lab: $(VENV)/installed
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

docs: $(VENV)/installed
	@$(BIN)/python docs/build_site.py $(STUDY) $(ARGS)

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

clean:
	rm -rf $(VENV)
