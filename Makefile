# Two commands need Python and make, nothing else: `make demo` and `make test`.
# Both install into .venv first, in the versions of constraints.txt: `make demo` what it needs itself,
# `make test` everything.

VENV ?= .venv
EXTRAS ?= dev,train,weights,weights-lite1,weights-lite2,open-clip,lora,tensorboard,mlflow,dicom-codecs,dicom,dicomweb,fhir,heic,hdf5,s3,audit,preprocess,onnx,parquet,excel,serve,page,postgresql,browser,sweep,federated,docs,notebooks
DEMO_EXTRAS ?= train,weights
DEMO_RUN ?= runs/demo
DEMO_MODEL = $(DEMO_RUN)/checkpoints/ensemble.ckpt
DIST ?= dist
# Arguments for every pip call, for instance --no-index, or --extra-index-url URL for builds of torch and
# torchvision without CUDA.
PIP_ARGS ?=
PYTEST_ARGS ?=

SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$python && break; done)

IN_VENV := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-lowest test-notebooks docs docs-serve licences dist check-core lint format python wheel install-wheel check-wheel constraints

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(DEMO_STAMP)  ## train five folds on the included cohort, evaluate them, predict a patient list
	$(IN_VENV) train.py experiment=demo hydra.run.dir=$(DEMO_RUN) overwrite=true
	$(IN_VENV) predict.py checkpoint=$(DEMO_MODEL) \
		input=skinmm/demo/patients.csv images=skinmm/demo/images \
		output=$(DEMO_RUN)/predictions/patients.csv overwrite=true
	@echo
	@echo "The run:      $(DEMO_RUN)/"
	@echo "The report:   $(DEMO_RUN)/report.html"
	@echo "Its numbers:  $(DEMO_RUN)/metrics.json"
	@echo "The model:    $(DEMO_MODEL)"
	@echo "The patients: $(DEMO_RUN)/predictions/patients.csv"
	@echo "To serve it:  $(VENV)/bin/pip install -c constraints.txt -e '.[serve,page]'"
	@echo "              $(VENV)/bin/skinmm serve checkpoint=$(DEMO_MODEL)"

test: $(STAMP)  ## run the tests (those of real cohorts where SKINMM_DATA names their folder)
	$(IN_VENV) -m pytest -m 'not slow' --numprocesses auto --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)  ## run the tests that take minutes
	$(IN_VENV) -m pytest -m slow $(PYTEST_ARGS)

test-notebooks: $(STAMP)  ## run the notebooks of examples/ from top to bottom
	$(IN_VENV) -m pytest -m slow tests/test_notebooks.py $(PYTEST_ARGS)

docs: $(STAMP)  ## build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(IN_VENV) -m mkdocs build --strict

docs-serve: $(STAMP)  ## show the documentation on http://127.0.0.1:8000 while you write
	NO_MKDOCS_2_WARNING=1 $(IN_VENV) -m mkdocs serve

# Old versions warn of newer ones of their own dependencies. Flower's tests need one exact version.
# The deselected test builds networks on PyTorch's meta device, which only newer versions of timm can.
LOWEST := $(VENV)-lowest
LOWEST_EXTRAS = $(subst $(COMMA)federated,,$(subst $(COMMA)browser,,$(EXTRAS)))
COMMA := ,
test-lowest: $(STAMP)  ## run the tests with the lowest versions that pyproject.toml allows
	$(VENV)/bin/uv venv --clear --python $(IN_VENV) $(LOWEST)
	$(VENV)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[$(LOWEST_EXTRAS)]'
	$(LOWEST)/bin/python -m pytest -m 'not slow' --numprocesses auto --dist loadfile \
		-W ignore::DeprecationWarning -W ignore::FutureWarning --ignore tests/federated \
		--deselect tests/models/test_backbone.py::test_every_model_of_conf_is_as_wide_as_declared $(PYTEST_ARGS)

lint: $(STAMP)  ## what must hold of every file: ruff, its format, mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(IN_VENV): | python
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): pyproject.toml constraints.txt | $(IN_VENV)
	$(IN_VENV) -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(DEMO_EXTRAS)]'
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(IN_VENV)
	$(IN_VENV) -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(DEMO_STAMP) $@

python:
	@'$(or $(PYTHON),false)' -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "skinmm needs Python 3.11, 3.12 or 3.13 with its venv module (Debian: python3-venv)." >&2; \
		echo "$(if $(PYTHON),$(PYTHON) is not one,None is in PATH)." >&2; \
		echo "Name one: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; \
		exit 2; }

# The steps of docker/Dockerfile.

wheel: | python  ## build the wheel into dist/
	$(PYTHON) -m pip wheel $(PIP_ARGS) --no-deps --wheel-dir $(DIST) .

install-wheel: | $(IN_VENV)  ## install the wheel of dist/ with EXTRAS into VENV, without the checkout
	$(IN_VENV) -m pip install $(PIP_ARGS) -c constraints.txt \
		"$(lastword $(sort $(wildcard $(DIST)/skinmm-*.whl)))$(if $(EXTRAS),[$(EXTRAS)])"

dist: $(STAMP)  ## build wheel and source archive into dist/, and check what is in them
	$(IN_VENV) -m hatchling build -d $(DIST)
	$(IN_VENV) -m twine check --strict $(DIST)/skinmm-*
	$(IN_VENV) -m pytest tests/test_repository.py $(PYTEST_ARGS)

licences: $(STAMP)  ## list the licences of all dependencies by extra; the GPL is refused
	$(IN_VENV) .ci/licences.py

check-core:  ## does the skinmm of VENV predict without any extra?
	$(IN_VENV) .ci/check_core.py

check-wheel:  ## does the skinmm of VENV start outside the checkout?
	cd / && $(abspath $(VENV))/bin/skinmm train --help >/dev/null
	cd / && $(abspath $(VENV))/bin/skinmm predict --help >/dev/null

constraints: $(STAMP)  ## write what is installed in .venv into constraints.txt
	$(IN_VENV) -m pip freeze --all --exclude-editable \
		--exclude skinmm --exclude pip --exclude wheel > $(VENV)/frozen.txt
	{ sed -n '/^#/p' constraints.txt; sed 's/+.*//' $(VENV)/frozen.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	@touch $(STAMP)
