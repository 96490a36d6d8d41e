# make demo    install into .venv, train the default experiment, draw it
# make test    all tests but the reproductions; ARGS="tests/core -k chain" chooses some, ARGS="-m slow" the reproductions
# make check   format, lint, types, layers
# make bench   Umbel against its peers
# make bench-privacy  encryption, masks, noise and accounting against AES-CTR, memcpy and Flower
# make bench-deploy   rounds over real processes against stock Flower
# make clean   remove what was made, but for .venv

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# Set anywhere to 1, it would keep TensorFlow from being byte-compiled, and every import of it would take three times as long.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test check bench bench-privacy bench-deploy clean

demo: .venv/installed
	@mkdir -p out
	@$(BIN)/umbel run --plot out/digits_fedavg.png --store sqlite:///out/runs.db

test: .venv/installed-test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 $(ARGS)

check: .venv/installed-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(filter-out __main__.py,$(wildcard *.py)) core strategies privacy data clients server runtimes experiments deploy
	@$(BIN)/python -m pytest -q tests/test_layers.py

bench: .venv/installed-test
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-privacy: .venv/installed-test
	@$(BIN)/python -m umbel.benchmarks.privacy $(ARGS)

bench-deploy: .venv/installed-test
	@$(BIN)/python benchmarks/deploy.py $(ARGS)

clean:
	rm -rf out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml | .venv/bin/pip
	@echo "Installing into .venv: once, a few minutes, mostly for TensorFlow"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/bin/pip
	@echo "Installing into .venv: once, a few minutes, mostly for TensorFlow"
	@$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@ .venv/installed

.venv/bin/pip:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
		{ echo "Umbel needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
