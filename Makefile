# Two commands: `make demo` and `make test`. Each does all of its own set-up in .venv. `make test-portable TESTS=…` takes
# the tests through the kernels of other processors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TESTS ?= tests

# Tests that start processes do not compile the package once more in each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-portable lint types docs clean

demo: $(STAMP)
	$(BIN)/graphsurgery demo --overwrite

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# As other processors run them: the kernels of PyTorch, then those of oneDNN, with one thread and with four; last, where
# this processor can pretend, as one with AVX2 and no more, which is what ONNX Runtime's kernels go by.
test-portable: $(STAMP)
	PYTHON=$(BIN)/python tests/portable.sh $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

# The documentation as a site in build/site; a link that leads nowhere fails.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

types: $(STAMP)
	$(BIN)/mypy

# A source archive holds no links: there these are made first.
$(STAMP): pyproject.toml constraints.txt
	for folder in passes cli models; do test -e graphsurgery/$$folder || ln -s ../$$folder graphsurgery/$$folder; done
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[dev]" -c constraints.txt
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo runs
