# One door: every check that CI runs is a target here, and nothing else is.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
WORKERS ?= 2

.PHONY: setup fmt lint types test test-all docs bench speed

setup:  ## a virtual environment with everything a developer needs
	python3 -m venv .venv
	.venv/bin/pip install -e ".[dev]"
	.venv/bin/pip install --no-deps "curvlinops-for-pytorch>=3.0,<4"

fmt:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

types:
	$(PYTHON) -m mypy

test:  ## everything but what takes minutes
	$(PYTHON) -m pytest -n $(WORKERS) --dist worksteal -m "not long"

test-all:
	$(PYTHON) -m pytest -n $(WORKERS)

docs:
	$(PYTHON) -m mkdocs build --strict

speed:  ## every row of the speed benchmark at its smallest: written down, and held to nothing
	$(PYTHON) benchmarks/speed.py --short --out build/speed-short.json

bench:
	$(PYTHON) benchmarks/main_road.py --out benchmarks/results/main_road.json
