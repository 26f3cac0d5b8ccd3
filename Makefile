# Two commands matter: `make figures` and `make test`. Each builds its own environment first; `make help` lists the rest.
SHELL   := /bin/sh
PYTHON  ?= python3
VENV    ?= .venv
PAPER   ?= all
SCALE   ?= smoke
DATA    ?= phantom
OUT     ?= runs
BIN      = $(VENV)/bin
READY    = $(VENV)/.medsyn-ready
CHAPTERS = $(sort $(wildcard nbs/library/*.ipynb)) $(sort $(wildcard nbs/papers/*/model.ipynb)) nbs/index.ipynb
export PAPER SCALE DATA OUT
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# A folder of real samples beside the checkout is used by the tests when it is there; without it they skip and say so.
ifndef MEDSYN_DATA
ifneq ($(wildcard ../shared/data/.),)
test: export MEDSYN_DATA := $(abspath ../shared/data)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help env figures test notebooks sync publish readme clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

env: $(READY)  ## create .venv and install medsyn into it (the other targets do this by themselves)

figures: $(READY)  ## rebuild every figure and table (PAPER=all SCALE=smoke DATA=phantom OUT=runs)
	@$(BIN)/medsyn run "$$PAPER" --scale "$$SCALE" --data "$$DATA" --out "$$OUT"
	@$(BIN)/medsyn report --out "$$OUT"

test: $(READY)  ## check that notebooks, modules and README agree, lint, run every chapter and test
	@$(BIN)/python -m pytest -n 2 --dist loadgroup </dev/null

notebooks: $(READY)  ## execute the chapters in place so that their stored outputs are fresh
	@cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	MEDSYN_CACHE="$$cache" $(BIN)/python -m nbconvert --to notebook --execute --inplace --log-level WARN $(CHAPTERS)
	@$(MAKE) --no-print-directory sync

sync: $(READY)  ## export the modules, clean the notebooks, write README.md
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(MAKE) --no-print-directory readme

publish: $(READY)  ## keep a run's evidence in results/: RUN=runs/PAPER/SCALE-DATA
	@test -f "$(RUN)/results.json" || { echo "make publish RUN=runs/PAPER/SCALE-DATA: a folder with results.json"; exit 1; }
	@RUN="$(RUN)" $(BIN)/python -c 'import os; from medsyn.runner import publish; print("kept in", publish(os.environ["RUN"]))'

readme: $(READY)  ## README.md from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py README.md

clean:  ## remove the environment, caches and builds (runs/ is kept)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# The stamp is written last: an interrupted installation starts again, a change of these files installs again.
$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and "medsyn needs Python 3.11 or later, this is " + v + ": try `make PYTHON=python3.12`")'
	@echo "Preparing $(VENV) (a minute or two the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' </dev/null
	@touch $@
