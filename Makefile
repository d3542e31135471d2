# `make study` and `make test` need Python 3.11+ and nothing else; both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= studies/digits.yaml
STRESS ?= 20
DEVICE ?=
# One process a core with one thread each beats many threads in one process for small models.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# where it is set, every process would compile the packages again, and pytest every test file
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup study test stress notebooks site bench gpu lint clean

setup: $(VENV)/.ready

# torch comes first and by its exact version: a range could pull a build with gigabytes of GPU libraries.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet -e ".[notebooks,mnist1d]" --group dev -c constraints.txt
	touch $@

study: setup
	$(BIN)/landscape study $(STUDY)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# what several processes share: each test so often, under load on all cores, with other delays and kills each time
stress: setup
	STRESS=$(STRESS) $(BIN)/python -m pytest tests/sharing -q --timeout=900

notebooks: setup
	$(BIN)/python notebooks/build.py

# the documentation, in build/site; the gallery's figures are those of a small study. Its search needs a server:
# python -m http.server -d build/site
site: setup
	$(BIN)/landscape study studies/smoke.yaml
	LANDSCAPE_SITE_STUDY=$(CURDIR)/runs/smoke NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

bench: setup
	$(BIN)/python -m benchmarks

# no setup: any interpreter with torch, numpy, scipy and pandas will do, `make gpu PYTHON=/opt/conda/bin/python`
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(DEVICE),--device $(DEVICE))

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs
