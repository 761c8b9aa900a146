# What a person does here; `make demo` is the place to begin.
PYTHON ?= python3
BIN := .venv/bin
LABEL_STUDIO := .venv-label-studio/.installed
# What is installed, with versions and hashes; `make lock` writes them.
SERVICE_LOCKS := requirements-torch.lock requirements.lock
DEV_LOCKS := requirements-extras.lock requirements-dev.lock
LABEL_STUDIO_LOCK := requirements-label-studio.lock
SUPPLY := .venv-supply/bin
CHROMIUM_PACKAGES := chromium fonts-liberation

.DEFAULT_GOAL := help
.PHONY: help install demo test unit slow integration containers check format e2e newest lowest screenshot bench lock audit sbom chromium clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: .venv/.installed $(LABEL_STUDIO) ## the service and Label Studio, each in its own venv

demo: ## everything on this machine, with a Label Studio: DEMO="--backend-port 9091" passes options
	@$(MAKE) --no-print-directory -j2 install
	@$(BIN)/sspsam demo $(DEMO)

# The models of the tests are tiny: a second thread only waits for the first.
test unit slow integration newest lowest: export OMP_NUM_THREADS = 1
# On all cores; tests of one Label Studio stay together.
PYTEST_PARALLEL := pytest -n auto --dist loadgroup
UNIT := not slow and not integration and not e2e and not containers

test: .venv/.installed-dev $(LABEL_STUDIO) ## all tests but those in a browser and in containers
	$(BIN)/$(PYTEST_PARALLEL) -m "not e2e and not containers"

unit: .venv/.installed-dev ## seconds, on all cores; no network, no weights to fetch
	$(BIN)/$(PYTEST_PARALLEL) -m "$(UNIT)"

slow: .venv/.installed-dev ## learning, several processes, large files: a few minutes
	$(BIN)/$(PYTEST_PARALLEL) -m slow

integration: .venv/.installed-dev $(LABEL_STUDIO) ## a real Redis, worker and Label Studio
	$(BIN)/$(PYTEST_PARALLEL) -m integration

check: .venv/.installed-dev ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.installed-dev ## put the code into the one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

e2e: .venv/.installed-dev $(LABEL_STUDIO) chromium ## a browser goes through the demo as a person would
	$(BIN)/pytest -m e2e

containers: .venv/.installed-dev ## with a Docker engine: build the image, and go through the life of an installation
	$(BIN)/pytest -x -v -s -m containers

newest lowest: .venv-supply ## unit tests and a phrase with the newest, or the lowest, versions that are allowed
	$(SUPPLY)/python tools/other_versions.py $@ --uv $(SUPPLY)/uv --python $(PYTHON)
	.venv-$@/bin/$(PYTEST_PARALLEL) $(WARNINGS) -m "$(UNIT)"
	.venv-$@/bin/pytest $(WARNINGS) tests/integration/test_backend_process.py -k request_under_way
# Versions warn of what newer ones no longer have.
newest lowest: WARNINGS := -W default

screenshot: .venv/.installed-dev $(LABEL_STUDIO) chromium ## the documents' pictures of the editor, anew
	KEEP_PICTURES=docs/images $(BIN)/pytest -m e2e -k "put_masks or in_place or together or better_version"

bench: .venv/.installed-dev ## the benchmarks, each a ratio measured in one run
	@failed=; for file in benchmarks/*.py; do \
		echo "$$file"; $(BIN)/python "$$file" || failed="$$failed $$file"; \
	done; [ -z "$$failed" ] || { echo "These ended with an error:$$failed"; exit 1; }


lock: .venv-supply ## renew the lock files; LOCK=--keep changes only what pyproject.toml asks for
	$(SUPPLY)/python tools/lock.py --uv $(SUPPLY)/uv $(LOCK)

audit: .venv-supply ## known vulnerabilities in what is locked
	$(SUPPLY)/pip-audit --disable-pip --require-hashes $(addprefix -r ,$(SERVICE_LOCKS))

sbom: .venv-supply ## what is locked, as a CycloneDX bill of materials: sbom.json
	cat $(SERVICE_LOCKS) | $(SUPPLY)/cyclonedx-py requirements - --output-file sbom.json

.venv-supply:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --disable-pip-version-check --quiet uv==0.13.* pip-audit==2.* cyclonedx-bom==7.*

chromium:
	@command -v "$${CHROMIUM:-chromium}" >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing Chromium" \
	     && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(CHROMIUM_PACKAGES) >/dev/null; } \
	|| { echo "The browser test needs Chromium: install it (Debian: apt-get install $(CHROMIUM_PACKAGES))" \
	          "or say where it is with CHROMIUM=/path/to/chromium"; exit 1; }

clean: ## remove what was installed and built; the demo's data in .demo stays
	rm -rf .venv .venv-label-studio .venv-newest .venv-lowest .venv-supply build *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Python 3.11 or newer is needed; say which with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml $(SERVICE_LOCKS) | .venv/bin/python
	@$(PYTHON) tools/install.py .venv "the service with PyTorch" $(SERVICE_LOCKS) --project
	@touch $@

.venv/.installed-dev: .venv/.installed $(DEV_LOCKS)
	@$(PYTHON) tools/install.py .venv "tests and linters" $(DEV_LOCKS)
	@touch $@

$(LABEL_STUDIO): $(LABEL_STUDIO_LOCK)
	@$(PYTHON) -m venv .venv-label-studio
	@$(PYTHON) tools/install.py .venv-label-studio "Label Studio" $(LABEL_STUDIO_LOCK)
	@touch $@
