# Planish. `make` shows what there is; `make demo` and `make test` install what they need into .venv.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Python compiles what is imported, once, and keeps it; compiling every module of every package takes as long as installing
# them. Where an environment forbids it to keep anything, each process that tests start would compile PyTorch and TVM anew.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup emulator demo test lint bench wheel clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

# Without python3-venv, or without qemu, apt provides them where root or sudo is at hand. The Unicorn
# emulator from PyPI, which setup installs anyway, stands in for qemu everywhere else.
APT := $(shell [ "$$(id -u)" = 0 ] && echo 'apt-get' || { sudo -n true 2>/dev/null && echo 'sudo -n apt-get'; })

$(VENV)/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); expected Python 3.11 to 3.13; set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { [ -n "$(APT)" ] && $(APT) update -qq && $(APT) install -y -qq python3-venv >/dev/null; } || \
	  { echo "make: the venv module is missing; run: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)"
	$(PIP) -e '.[deploy,train,cuda,demo,plot,bench,dev]'
	@touch $@

setup: $(VENV)/ready emulator  ## install everything into .venv

emulator:
	@command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || \
	  { [ -n "$(APT)" ] && $(APT) update -qq && $(APT) install -y -qq qemu-user >/dev/null; } || \
	  echo "make: QEMU is not installed and cannot be without root; the Unicorn emulator is used instead"
	@command -v g++ >/dev/null || \
	  { [ -n "$(APT)" ] && $(APT) install -y -qq g++ >/dev/null; } || \
	  echo "make: there is no g++ and no root to install it; zig from PyPI is used instead"

demo: setup  ## the main job: thin a pretrained model, compile it for this machine and for a Raspberry Pi 4, run both
	$(RUN) benchmarks/demo.py

test: setup  ## the test suite
	$(RUN) -m pytest -n 2 --dist worksteal

lint: setup  ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

bench: setup  ## latency against onnxruntime, OpenVINO, Inductor and PyTorch eager
	$(RUN) benchmarks/latency.py

wheel: setup  ## build the wheel into dist/
	$(RUN) -m build --wheel --outdir dist .

clean:  ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
