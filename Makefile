# make demo    install into .venv, train the default experiment, draw it
# make test    a case or more of nearly every law; ARGS="tests/core -k chain" chooses some, ARGS="-m slow" reproductions and sweeps
# make test-long  what takes long: federations that are killed, moved and rotated, and grids in full (tests/long.txt)
# make test-flower FLWR=1.41  with another release of Flower: what Umbel takes of it, and everything over it
# make check   format, lint, types, layers, first lines of docstrings
# make docs    the site, in out/site
# make dist    wheel and sdist, in dist
# make bench   Umbel against its peers
# make bench-privacy  encryption, masks, noise and accounting against AES-CTR, memcpy and Flower
# make bench-deploy   rounds over real processes against stock Flower
# make bench-ray      rounds on a cluster of this machine, by turns with rounds in one process
# make clean   remove what was made, but for .venv

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# Set anywhere to 1, it would keep TensorFlow from being byte-compiled, and every import of it would take three times as long.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-long test-flower check docs dist bench bench-privacy bench-deploy bench-ray clean

demo: .venv/installed
	@mkdir -p out
	@$(BIN)/umbel run --plot out/digits_fedavg.png --store sqlite:///out/runs.db

test: .venv/installed-test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

test-long: .venv/installed-test
	@$(MAKE) --no-print-directory test ARGS="-m long $(ARGS)"

# Another Flower, before the one in .venv; what it depends on stays as it is.
FLWR ?= 1.41
FLOWER := out/flower-$(FLWR)

test-flower: .venv/installed-test $(FLOWER)/installed
	@PYTHONPATH=$(CURDIR)/$(FLOWER) $(BIN)/python -c "from importlib.metadata import version; print('Flower', version('flwr'))"
	@PYTHONPATH=$(CURDIR)/$(FLOWER) $(MAKE) --no-print-directory test ARGS="$(or $(ARGS),tests/runtimes/flower tests/deploy)"

$(FLOWER)/installed: | .venv/bin/pip
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(FLOWER) "flwr==$(FLWR).*"
	@touch $@

check: .venv/installed-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy __init__.py core strategies privacy data clients server runtimes studies experiments deploy cli
	@$(BIN)/python -m pytest -q tests/test_layers.py tests/test_words.py

docs: .venv/installed-docs
	@$(BIN)/python -m sphinx -q -W --keep-going -j auto -c docs/site -d out/doctrees . out/site
	@echo "out/site/index.html"

dist: .venv/installed-test
	@rm -rf dist build
	@$(BIN)/python -m build --outdir dist .
	@rm -rf build *.egg-info

bench: .venv/installed-test
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-privacy: .venv/installed-test
	@$(BIN)/python -m umbel.benchmarks.privacy $(ARGS)

bench-deploy: .venv/installed-test
	@$(BIN)/python benchmarks/deploy.py $(ARGS)

bench-ray: .venv/installed-test
	@$(BIN)/python -m umbel.benchmarks.cluster $(ARGS)

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

.venv/installed-docs: pyproject.toml | .venv/bin/pip
	@echo "Installing into .venv: once, a few minutes, mostly for TensorFlow"
	@$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
		{ echo "Umbel needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
