PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin

.PHONY: quickstart evaluate app test test-lowest test-ray style benchmark lmms-eval

# Trains a miniature in the paper's three stages and draws with it; see outputs/quickstart.
quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py --output_dir outputs/quickstart

# Evaluates what `make quickstart` has left on the miniature's benchmarks.
evaluate: $(VENV)/installed
	$(BIN)/python examples/evaluate.py outputs/quickstart/model --tasks miniature --output outputs/quickstart/evaluation

# Chat, draw and see inside in the browser, with that miniature: 127.0.0.1, or another model with MODEL=...
app: $(VENV)/installed
	$(BIN)/python examples/app.py $(MODEL)

# Two processes with a thread each: more threads than cores wait for one another.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2

# The same on the lowest versions that setup.cfg allows, in an environment of their own.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

# Two replicas of the server on Ray, which is 360 MB installed and so not part of the other tests.
test-ray: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[ray]"
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/examples/test_serve_ray.py

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/maop_cost.py
	$(BIN)/python benchmarks/anchor_cost.py
	$(BIN)/python benchmarks/data_and_experts.py
	$(BIN)/python benchmarks/loss_memory.py
	$(BIN)/python benchmarks/inference.py

# lmms-eval as it can be installed: its own requirements would replace torch and bring torchvision, which breaks
# AutoProcessor beside torch's CPU build, and it does not start beside filelock 4.
lmms-eval: .venv-lmms/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-lmms/bin/python -m pytest tests/trainer/evaluation/test_lmms_harness.py

.venv-lmms/installed: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) "filelock <4" loguru tenacity \
		pytest --editable ".[train,hub,evaluation]"
	.venv-lmms/bin/python -m pip install --quiet --no-deps "lmms-eval ==0.7.3"
	touch $@

$(VENV)/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[train,hub,examples,evaluation,serve,app,test]"
	touch $@
