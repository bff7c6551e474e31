# `make demo`, `make demo-dna` and `make test` set up everything they need on a fresh machine; a second call starts at once.
PYTHON ?= python3
VENV := .venv
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check
WORKERS ?= 2

.PHONY: demo demo-dna test lint units commands signals clean

demo: $(VENV)/installed
	$(VENV)/bin/difftilt finetune digits --out runs/demo --overwrite

demo-dna: $(VENV)/installed
	$(VENV)/bin/difftilt finetune dna --out runs/demo-dna --overwrite

# two things at a time, as what has one process leaves a core idle
test: $(VENV)/installed-dev
	$(MAKE) --jobs 2 lint units
	$(MAKE) --jobs 2 commands signals

# commands are run as users run them: without the checks of shapes and types that all other tests make
COMMANDS := tests/cli tests/domains tests/experiment

units: $(VENV)/installed-dev
	$(VENV)/bin/pytest -n $(WORKERS) $(COMMANDS:%=--ignore=%)

commands: $(VENV)/installed-dev
	DIFFTILT_UNTYPED=1 $(VENV)/bin/pytest -n $(WORKERS) $(COMMANDS)

# a process of several that run tests has its own way with signals
signals: $(VENV)/installed-dev
	DIFFTILT_UNTYPED=1 $(VENV)/bin/pytest -n 0 tests/cli/test_interrupted_commands.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[logos,tensorboard]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[diffusers,logos,molecules,rna,tensorboard,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
