# Needs only python3 (3.11 or newer), pip and make. Every target makes the venv that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Many tests wait for processes, so that more of them than cores are well at once.
JOBS ?= 4
# Every process that is started would compile all modules anew: a third of a start, and a seventh of the tests' CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: dev test check cover oldest lint types docs bench chaos fuzz clean

dev: $(VENV)/ready  ## run the orders example: a private nats-server, a gateway, the service
	$(BIN)/natsweb dev examples/orders/app.py

test: $(VENV)/ready  ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

check: lint types test  ## what CI runs: lint, types, tests

cover: $(VENV)/ready  ## run the tests, and show which lines they have not reached
	$(MAKE) test PYTEST="--cov --cov-report=term:skip-covered"

oldest:  ## the tests that touch nats-py, on the lowest one that pyproject.toml allows
	$(MAKE) test VENV=.venv-oldest NATS="nats-py==2.14.0" PYTEST="tests/test_bus.py tests/test_natsbus.py tests/test_worker.py tests/test_gateway.py"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/ready  ## build the documentation into site/
	$(BIN)/pip install -q --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/ready  ## measure natsweb beside others, with wrk; OPTIONS="--rounds 3"
	$(BIN)/python -m tests.benchmarks $(OPTIONS)

chaos: $(VENV)/ready  ## stop, kill and restart processes under load; OPTIONS="--only nats-restart"
	$(BIN)/python -m tests.chaos $(OPTIONS)

fuzz: $(VENV)/ready  ## fuzz all that reads foreign bytes, with atheris; OPTIONS="--only doors --seconds 600"
	$(BIN)/pip install -q --group fuzz
	$(BIN)/python -m tests.fuzz $(OPTIONS)

clean:
	rm -rf $(VENV) .venv-oldest site dist bench .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

# pip before 25.1 knows no dependency groups.
$(VENV)/ready: pyproject.toml
	@echo "installing natsweb and its tools into $(VENV), once; this takes half a minute or so"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -e ".[standard]" --group dev $(NATS)
	touch $@
