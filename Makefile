# The project's commands; CI calls the same ones. `make` alone tests and checks.
# Set-up happens by itself, once, inside the checkout (.venv, node_modules, .tools): no sudo, nothing else is touched.

PYTHON ?= $(shell sh sandbox/find-python)
PY      = .venv/bin/python
DONE    = .venv/done
PIP     = $(PY) -m pip --disable-pip-version-check -q install
# The locks name every package, so pip need not resolve: pip would look at newer releases first and stop at their hashes.
LOCKED  = --no-deps --require-hashes -r
LOCK    = .venv/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes \
          --no-header --no-emit-index-url $(if $(UPGRADE),--upgrade)
PYTEST  = $(PY) -m pytest
RIGHTS  = PYTHONPATH=.:tests $(PY) tests/rights.py
# Microsoft's own runtime package needs Python 3.13: where there is one, the app is tested under it too.
RUNTIME = $(if $(filter-out $(PYTHON),$(shell sh sandbox/find-python 3.13)),.venv-3.13/done)

# Tests start hundreds of Pythons: each would compile what it imports where the environment forbids to keep that.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: rights package supply-chain all setup demo start test format bench e2e lock clean \
    check check-format check-lint check-types check-imports check-repository check-docs docs

all: test check

setup: $(DONE)/python $(DONE)/node $(DONE)/etcd node_modules/.package-lock.json   ## everything below needs this, and calls it

demo: setup            ## the main job on the local world, every printed promise checked
	@$(PY) -m sandbox demo

start: setup           ## the local Functions host with Azurite, until Ctrl-C
	@$(PY) -m sandbox host

test: setup $(RUNTIME) ## unit, clients, functions, scenarios; ARGS="-k name" is handed to pytest
	@rm -rf build/rights
	@$(PYTEST) -m "not e2e" -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS)
	@$(if $(ARGS),,$(RIGHTS) check)
	@echo "coverage of function_app, functions and shared: $$($(PY) -m coverage report --format=total) %"

rights: setup          ## infra/ anew from what the last whole `make test` saw the automations ask Azure and Kubernetes for
	@$(RIGHTS) write

check: check-format check-lint check-types check-imports check-repository check-docs  ## `make -k check` goes on after a failure

check-format: $(DONE)/python
	@echo "ruff format";  $(PY) -m ruff format --check -q .
check-lint: $(DONE)/python
	@echo "ruff check";   $(PY) -m ruff check -q .
check-types: $(DONE)/python
	@echo "mypy";         $(PY) -m mypy
check-imports: $(DONE)/python
	@echo "import contracts"; .venv/bin/lint-imports --no-logo --no-cache
check-repository: $(DONE)/python
	@echo "files, locks, schema, links"; $(PYTEST) -q -p no:cacheprovider tests/repository

check-docs: $(DONE)/python
	@echo "documentation"; NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q --strict

docs: check-docs       ## the documentation as a site, in build/site
	@echo "build/site/index.html"

format: $(DONE)/python ## rewrite the files as `make check` wants them
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .

bench: setup           ## ratios against named baselines; ONLY=name for one
	@$(PY) -m bench $(ONLY)

e2e: setup             ## the tests on the real Kubernetes control plane (KUBEBUILDER_ASSETS); the contracts on both
	@$(PYTEST) -m "e2e or contract" $(ARGS)

package: $(DONE)/python ## the zip that a deployment uploads, in build/
	@$(PY) -m sandbox package

supply-chain: package  ## what is deployed: a bill of materials and licences in build/, known vulnerabilities
	@.venv/bin/cyclonedx-py requirements requirements.txt --of JSON -o build/sbom.json
	@echo "build/sbom.json: CycloneDX, $$(grep -c '"bom-ref"' build/sbom.json) components"
	@.venv/bin/pip-licenses --packages $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements.txt) --format=markdown --output-file=build/licences.md >/dev/null
	@echo "build/licences.md"
	@.venv/bin/pip-audit --disable-pip --no-deps --require-hashes -r requirements.txt --progress-spinner off \
	    -f json -o build/audit.json >/dev/null 2>&1; $(PY) -c "$$AUDITED" build/audit.json

# Exits 1 when a known vulnerability was found; says how many packages the database could not be asked about.
define AUDITED
import json, sys
found = json.load(open(sys.argv[1]))["dependencies"]
bad = [f"{one['name']} {one['version']}: {v['id']}" for one in found for v in one.get("vulns", ())]
asked = sum("vulns" in one for one in found)
print("build/audit.json:", asked, "packages audited,", len(found) - asked, "could not be,", len(bad), "vulnerabilities", *bad)
sys.exit(bool(bad))
endef
export AUDITED

lock: $(DONE)/python   ## requirements*.txt from pyproject.toml; UPGRADE=1 takes the newest versions
	$(LOCK) -o requirements.txt
	$(LOCK) --extra cli --group dev -c requirements.txt -o requirements-dev.txt
	$(LOCK:pyproject.toml=) --group node -o requirements-node.txt
	$(LOCK:pyproject.toml=) --group etcd -o requirements-etcd.txt
	$(LOCK:pyproject.toml=) --group forwarder -c requirements.txt -o infra/forwarder/requirements.txt

clean:                 ## remove everything set-up and tests have made
	rm -rf .venv .venv-3.* .tools node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
	    .coverage .coverage.* htmlcov build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up: a file in .venv/done for each finished step, made again when what it was made from changes ---

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 with its venv module is needed (Debian, Ubuntu: apt install python3-venv); or say where: make PYTHON=/path/to/python" >&2; exit 2; fi
	@echo "Setting up in this directory (once, a few minutes at most):"
	@echo "  - $$($(PYTHON) -V) environment in .venv"
	@$(PYTHON) -m venv .venv

$(DONE)/python: .venv/bin/python requirements-dev.txt pyproject.toml
	@echo "  - Python packages from requirements-dev.txt"
	@$(PIP) $(LOCKED) requirements-dev.txt
	@PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation -e .
	@mkdir -p $(DONE) && touch $@

.venv-%/done: requirements-dev.txt pyproject.toml | $(DONE)/python
	@echo "  - a second environment, .venv-$*, to test under Python $*"
	@$$(sh sandbox/find-python $*) -m venv .venv-$*
	@.venv-$*/bin/python -m pip --disable-pip-version-check -q install $(LOCKED) requirements-dev.txt
	@PYTHONWARNINGS=ignore .venv-$*/bin/python -m pip --disable-pip-version-check -q install --no-deps --no-build-isolation -e .
	@touch $@

$(DONE)/node: requirements-node.txt | $(DONE)/python
	@if ! $(PY) -m sandbox.tools has node; then echo "  - Node.js from requirements-node.txt, as this machine has none"; $(PIP) $(LOCKED) requirements-node.txt; fi
	@touch $@

$(DONE)/etcd: requirements-etcd.txt | $(DONE)/python
	@if ! $(PY) -m sandbox.tools has etcd; then echo "  - etcd from requirements-etcd.txt, as this machine has none"; $(PIP) $(LOCKED) requirements-etcd.txt; fi
	@touch $@

node_modules/.package-lock.json: package.json package-lock.json | $(DONE)/node
	@echo "  - Azurite from package-lock.json"
	@$(PY) -m sandbox.tools npm ci --silent
	@touch $@
