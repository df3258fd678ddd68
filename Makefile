# Short names for the lines of README.md and CONTRIBUTING.md.
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test lint format
demo: $(VENV)/bin/weirpool
	$(VENV)/bin/weirpool demo
test: $(VENV)/bin/weirpool
	$(VENV)/bin/python -m pytest
lint: $(VENV)/bin/weirpool
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
format: $(VENV)/bin/weirpool
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .
$(VENV)/bin/weirpool: pyproject.toml
	$(PYTHON) -m venv $(VENV) && $(VENV)/bin/pip install -q -e '.[test,lint]'
	touch $@
