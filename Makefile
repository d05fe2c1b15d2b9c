# make book    compute missing runs, execute the chapters that changed, render build/html/ (TIER=smoke|quick|reduced|paper)
# make test    lint, format, types, unit tests, every notebook, every page
# make bench   the performance claims, each against its baseline in one run
# make faults  inject every fault as often as the book says, and write down what came of it
# make clean   remove build/ and the tools' caches; .venv and the computed runs in data/cache stay
#
# Each sets up .venv by itself. PYTHON names the interpreter to make it from, PIP_FLAGS goes to `pip install`, for instance
# PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a torch without CUDA.

PYTHON ?= python3
TIER ?= quick
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist loadgroup
# In continuous integration (CI is set there) the packages are those of requirements.lock, file by file: see .ci/lock.
LOCKED ?= $(CI)

PY := .venv/bin/python
# The stamps carry a checksum of what was installed: a changed dependency installs again, a changed date does not.
SUM := $(shell cat pyproject.toml constraints.txt requirements.lock | cksum | cut -d ' ' -f 1)
WITH_BOOK := .venv/.book-$(SUM)
WITH_TEST := .venv/.test-$(SUM)

.PHONY: book test bench faults clean
.DELETE_ON_ERROR:

book: $(WITH_BOOK)
	@.venv/bin/snakemake --workflow-profile profiles/local --config tier=$(TIER)

# pytest comes last, so that its summary is the end of the output.
test: $(WITH_TEST)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest $(PYTEST_FLAGS)

# The tests of faults in their full number; each writes what it did to data/results/reliability/, which the book shows.
faults: $(WITH_TEST)
	NLADV_RECORD=1 $(PY) -m pytest $(addprefix tests/test_,$(addsuffix .py,kills concurrency disk corruption hostile numbers errors))

bench: $(WITH_TEST)
	@for script in $(filter-out benchmarks/report.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) $$script; done
	@$(PY) benchmarks/report.py

clean:
	rm -rf build .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nladv_core tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(WITH_BOOK):
	$(call install,book)
	@touch $@

$(WITH_TEST):
	$(call install,book,test)
	@touch $@ $(WITH_BOOK)

comma := ,
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nladv needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
$(if $(LOCKED),$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements.lock)
$(PY) -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[$(1)$(if $(2),$(comma)$(2))]"
@rm -f .venv/.book-* .venv/.test-*
endef
