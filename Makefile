PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test style benchmark

# Trains a miniature in the paper's three stages and draws with it; see outputs/quickstart.
quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py --output_dir outputs/quickstart

# Two processes with a thread each: more threads than cores wait for one another.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/maop_cost.py
	$(BIN)/python benchmarks/data_and_experts.py
	$(BIN)/python benchmarks/loss_memory.py

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,hub,examples,test]"
	touch $@
