# make demo: install and run the quickstart. make test: install and run the tests.
# make faults: try every fault and bad input there is, and print how many of each kind were survived.
# All need only Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults lint install clean

demo: .venv/installed
	$(BIN)/fedsim run quickstart

test: .venv/installed
	$(BIN)/python -m pytest tests -n 2 --durations=10

faults: .venv/installed
	FEDSIM_WHOLE=1 $(BIN)/python -m pytest tests/faults tests/badinput -p no:cacheprovider --timeout 900

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy finds packages by folder names; this lays the folders out as they are installed.
	@rm -rf build/types && mkdir -p build/types/fedsim
	@ln -s $(CURDIR)/fedsim/* $(CURDIR)/clients $(CURDIR)/server $(CURDIR)/adversaries $(CURDIR)/experiments build/types/fedsim/
	MYPYPATH=build/types $(BIN)/mypy -p fedsim

install: .venv/installed

# The stamp is newer than pyproject.toml when what it asks for has been installed.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedsim needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
