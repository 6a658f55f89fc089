# Two commands on a fresh machine: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv does not read pip's configuration: hand it pip's find-links and certificates.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || printenv PIP_FIND_LINKS)
export UV_FIND_LINKS := $(FIND_LINKS)
export SSL_CERT_FILE ?= $(PIP_CERT)
# Threads that wait sleep: on a busy machine torch is several times slower when they spin.
export OMP_WAIT_POLICY ?= PASSIVE
# Compiled once at set-up, so that every party starts quickly.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all coverage check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[demo,dev]'
	touch $(READY)

demo: setup
	$(BIN)/python experiments/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope

coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
