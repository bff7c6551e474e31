# `make demo`, `make demo-dna`, `make demo-molecules` and `make test` set up everything they need on a fresh machine; a second call starts at once.
PYTHON ?= python3
VENV := .venv
# compiling all packages would take longer than all else; what commands import is compiled, for where Python is told to
# keep no byte code each start would compile it again
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile
COMPILE := $(VENV)/bin/python -c 'import difftilt.evaluation.report, difftilt.experiment.finetune, difftilt.experiment.sample'
export PYTHONDONTWRITEBYTECODE :=
WORKERS ?= 2

PYTHONS := 3.11 3.12 3.13

.PHONY: demo demo-dna demo-molecules test lint typed untyped signals docs packaged wheel release clean

demo: $(VENV)/installed
	$(VENV)/bin/difftilt finetune digits --out runs/demo --overwrite

demo-dna: $(VENV)/installed
	$(VENV)/bin/difftilt finetune dna --out runs/demo-dna --overwrite

demo-molecules: $(VENV)/installed-molecules
	$(VENV)/bin/difftilt finetune molecules --out runs/demo-molecules --overwrite

# two things at a time, as what has one process leaves a core idle
test: $(VENV)/installed-dev
	$(MAKE) --jobs 2 lint typed
	$(MAKE) --jobs 2 untyped signals
	$(MAKE) --jobs 2 docs packaged

# Without the checks of shapes and types, which cost half of the time: commands, which are run as users run them, processes
# that are killed, and the long runs that prove algorithms. All other tests make them, with a run of every algorithm.
CHECKED := tests/training/test_every_algorithm.py tests/training/test_fit.py
UNTYPED := $(filter-out $(CHECKED),$(wildcard tests/training/test_*.py)) tests/test_docs.py tests/test_import.py tests/test_review.py \
	$(addprefix tests/,algorithms cli domains exact experiment lab rewards)

typed: $(VENV)/installed-dev
	$(VENV)/bin/pytest -n $(WORKERS) $(UNTYPED:%=--ignore=%)

untyped: $(VENV)/installed-dev
	DIFFTILT_UNTYPED=1 $(VENV)/bin/pytest -n $(WORKERS) $(UNTYPED)

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
	$(COMPILE)
	touch $@

$(VENV)/installed-molecules: $(VENV)/installed
	$(PIP) --editable '.[logos,molecules,tensorboard]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable '.[docs,logos,tensorboard]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[cluster,diffusers,docking,docs,logos,molecules,ray,rna,tensorboard,dev]'
	touch $(VENV)/installed-docs
	touch $@

# warnings are errors, links within the site included
docs: $(VENV)/installed-docs
	$(VENV)/bin/sphinx-build --builder html --fail-on-warning --keep-going --nitpicky --quiet --fresh-env --write-all docs docs/_build/html
	@echo "the site begins at docs/_build/html/index.html"

# the wheel in a clean environment of this Python, with short runs
packaged: $(VENV)/installed-dev
	$(VENV)/bin/python tests/release.py --quick --constraints constraints.txt

wheel: $(VENV)/installed-dev
	$(VENV)/bin/python -m build --outdir dist

# the wheel as a newcomer meets it, on every Python that is found, with the newest versions of what it needs; long
release: $(VENV)/installed-dev
	$(VENV)/bin/python tests/release.py --exact --pythons $(PYTHONS)

clean:
	rm -rf $(VENV) runs dist docs/_build docs/generated
