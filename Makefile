# Shortcuts; each line is a command of README.md.
PYTHON ?= .venv/bin/python

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -r requirements.txt

run:
	$(PYTHON) -m pivotrl_jax.main --config=configs/swe.py --workdir=runs/swe

test:
	$(PYTHON) -m pytest -n 2 tests

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check .

.PHONY: setup run test format
