# Development commands; start with `make demo`.
PYTHON ?= python3
BIN := .venv/bin
LABEL_STUDIO := .venv-label-studio/.installed
# Installed versions with hashes, written by `make lock`.
SERVICE_LOCKS := requirements-torch.lock requirements.lock
DEV_LOCKS := requirements-extras.lock requirements-dev.lock
LABEL_STUDIO_LOCK := requirements-label-studio.lock
CONSUMERS := .venv-consumers/.installed
CONSUMERS_LOCK := requirements-consumers.lock
SUPPLY := .venv-supply/bin
# Besides the one of $(LABEL_STUDIO); with setuptools of the time, whose pkg_resources the oldest imports.
OLDER_LABEL_STUDIOS := 1.13.1 1.16.0 1.20.0
CHROMIUM_PACKAGES := chromium fonts-liberation

.DEFAULT_GOAL := help
.PHONY: help install demo test unit attacks slow integration consumers compatibility containers check format e2e newest lowest screenshot bench alternatives gpu-check reproduce lock audit sbom chromium clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: .venv/.installed $(LABEL_STUDIO) ## install the service and Label Studio, each in its own venv

demo: ## run everything here, with Label Studio; MODEL=photographs; DEMO="--backend-port 9091" passes options
	@$(MAKE) --no-print-directory -j2 install
	@$(BIN)/sspsam demo $(if $(MODEL),--model $(MODEL)) $(DEMO)

# The tests' models are tiny: a second thread only waits for the first.
test unit attacks slow integration consumers compatibility newest lowest: export OMP_NUM_THREADS = 1
# Tests start hundreds of interpreters, each of which would compile our modules again.
test unit attacks slow integration consumers compatibility newest lowest: export PYTHONDONTWRITEBYTECODE =
# One process more than cores, since many tests wait for what they started. Tests that share a Label Studio run in
# one process.
PYTEST_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST_PARALLEL = pytest -n $(PYTEST_WORKERS) --dist loadgroup --ignore tests/e2e --ignore tests/containers --ignore tests/compatibility
UNIT := not slow and not integration and not consumers and not e2e and not containers

test: .venv/.installed-dev $(LABEL_STUDIO) ## run all tests except those with a browser or containers
	$(BIN)/$(PYTEST_PARALLEL) -m "not consumers and not e2e and not containers"

unit: .venv/.installed-dev ## run the unit tests: a minute and a half on two cores, without network or downloads
	$(BIN)/$(PYTEST_PARALLEL) --ignore tests/attacks -m "$(UNIT)"

attacks: .venv/.installed-dev ## try hostile input on every part: images, files, forms, requests, jobs; a minute
	$(BIN)/$(PYTEST_PARALLEL) -m "$(UNIT)" tests/attacks

slow: .venv/.installed-dev ## run the slow tests (learning, several processes, large files): a few minutes
	$(BIN)/$(PYTEST_PARALLEL) -m slow

integration: .venv/.installed-dev $(LABEL_STUDIO) ## run the tests with a real Redis, worker and Label Studio
	$(BIN)/$(PYTEST_PARALLEL) -m integration

consumers: .venv/.installed-dev $(CONSUMERS) ## let other tools read the exports: datumaro, supervision, ultralytics, transformers, datasets
	$(BIN)/pytest -m consumers tests/worker/export

compatibility: .venv/.installed-dev $(LABEL_STUDIO) $(OLDER_LABEL_STUDIOS:%=.venv-label-studio-%/.installed) chromium ## try every tested version of Label Studio, by API and in a browser: six minutes, and the installation
	$(BIN)/pytest -v -m compatibility tests/compatibility

check: .venv/.installed-dev ## check lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.installed-dev ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

e2e: .venv/.installed-dev $(LABEL_STUDIO) chromium ## run the browser tests, which use the demo like a user
	$(BIN)/pytest -m e2e

containers: .venv/.installed-dev ## build the image and test the life of an installation; needs a Docker engine
	$(BIN)/pytest -x -v -s -m containers

newest lowest: .venv-supply ## run the tests of the code and a phrase with the newest, or the lowest, allowed versions
	$(SUPPLY)/python tools/other_versions.py $@ --uv $(SUPPLY)/uv --python $(PYTHON)
	.venv-$@/bin/$(PYTEST_PARALLEL) $(WARNINGS) -m "$(UNIT)"
	.venv-$@/bin/$(PYTEST_PARALLEL) $(WARNINGS) -m slow tests/sspsam/checkpoints
	.venv-$@/bin/pytest $(WARNINGS) tests/integration/test_backend_process.py -k request_under_way
# Other versions emit deprecation warnings.
newest lowest: WARNINGS := -W default

screenshot: .venv/.installed-dev $(LABEL_STUDIO) chromium ## update the editor's screenshots in the documentation
	KEEP_PICTURES=docs/images $(BIN)/pytest -m e2e -k "put_masks or in_place or together or better_version or absence_is_a_label"

bench: .venv/.installed-dev ## run the benchmarks, each a ratio measured in one run
	@failed=; for file in $(filter-out %/gpu_check.py %/alternatives.py,$(wildcard benchmarks/*.py)); do \
		echo "$$file"; $(BIN)/python "$$file" || failed="$$failed $$file"; \
	done; [ -z "$$failed" ] || { echo "These ended with an error:$$failed"; exit 1; }

alternatives: $(CONSUMERS) ## time SAM 3, SAM 2, Grounding DINO and CLIPSeg beside ours
	.venv-consumers/bin/python benchmarks/alternatives.py

gpu-check: .venv/.installed-dev ## measure this machine's GPU in 8 minutes: a section for docs/performance.md
	$(BIN)/python benchmarks/gpu_check.py $(GPU_CHECK)

reproduce: .venv/.installed ## print the paper's tables beside ours: DATA=/path WEIGHTS="grefcoco=FILE refcoco=FILE"
	$(BIN)/sspsam reproduce --data $(or $(DATA),$(error DATA=/path is missing)) $(addprefix --weights ,$(WEIGHTS))

lock: .venv-supply ## update the lock files; LOCK=--keep changes versions only if necessary
	$(SUPPLY)/python tools/lock.py --uv $(SUPPLY)/uv $(LOCK)

audit: .venv-supply ## check the locked versions for known vulnerabilities
	$(SUPPLY)/pip-audit --disable-pip --require-hashes $(addprefix -r ,$(SERVICE_LOCKS))

sbom: .venv-supply ## write a CycloneDX bill of materials of the locked versions: sbom.json
	cat $(SERVICE_LOCKS) | $(SUPPLY)/cyclonedx-py requirements - --output-file sbom.json

.venv-supply:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --disable-pip-version-check --quiet uv==0.13.* pip-audit==2.* cyclonedx-bom==7.*

chromium:
	@command -v "$${CHROMIUM:-chromium}" >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing Chromium" \
	     && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(CHROMIUM_PACKAGES) >/dev/null; } \
	|| { echo "The browser test needs Chromium: install it (Debian: apt-get install $(CHROMIUM_PACKAGES))" \
	          "or give its path with CHROMIUM=/path/to/chromium"; exit 1; }

clean: ## remove installed and built files; keeps the demo's data in .demo
	rm -rf .venv .venv-label-studio .venv-label-studio-* .venv-consumers .venv-newest .venv-lowest .venv-supply build *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Python 3.11 or newer is required; select it with PYTHON=python3.12"; exit 1; }
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

.venv-label-studio-%/.installed: | .venv-supply
	@echo "Installing Label Studio $*"
	@$(SUPPLY)/uv venv --quiet --clear --python $(PYTHON) $(@D)
	@$(SUPPLY)/uv pip install --quiet --python $(@D) label-studio==$* "setuptools<81"
	@touch $@

# Beside the service's environment: what both have in the same version, PyTorch above all, is installed once.
$(CONSUMERS): $(CONSUMERS_LOCK) .venv/.installed-dev
	@$(PYTHON) -m venv .venv-consumers
	@$(PYTHON) tools/install.py .venv-consumers "tools that read exports" $(CONSUMERS_LOCK)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	> "$$(.venv-consumers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	@touch $@
