# `make demo` and `make test` install what they need; nothing else has to be done first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := $(firstword $(foreach p,python3.13 python3 python3.14 python3.12,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && command -v $(p))))
BIN := .venv/bin

.PHONY: help demo demo-adapter up test lint bench fuzz soak lock clean

help:  ## show this list
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

demo: .venv  ## drop a dataset into the embedded stack and watch it become a model
	$(BIN)/python -m local demo

demo-adapter: .venv  ## drop a LoRA adapter into the embedded stack and watch it answer
	$(BIN)/python -m local demo-adapter

up: .venv  ## start the embedded stack and leave it running; CLOUDFLARE=workerd for the real runtime of R2's side
	$(BIN)/python -m local up $(addprefix --cloudflare ,$(CLOUDFLARE))

test: .venv  ## every test that needs no account
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --jobs=2 --output-sync=target --no-print-directory test-stack test-rest

# What waits for embedded stacks, and what keeps a processor busy: side by side, each shown at its end.
STACKS := tests/end_to_end tests/workflow
.PHONY: test-stack test-rest
test-stack: .venv
	$(BIN)/pytest $(STACKS)
test-rest: .venv
	$(BIN)/pytest $(STACKS:%=--ignore=%)

lint: .venv  ## mend what the linters can mend, show the rest
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: .venv  ## measure the stack, the way of 200 MB and 2 GB, a large adapter, then the dataset check against its bounds
	$(BIN)/python -m tests.bench.stack
	$(BIN)/python -m tests.bench.transfer
	$(BIN)/python -m tests.bench.transfer --line 75
	$(BIN)/python -m tests.bench.forwarder
	$(BIN)/python -m tests.bench.adapter
	$(BIN)/python tests/bench/check.py --memory

fuzz: .venv  ## feed the dataset check damaged files for a minute
	$(BIN)/python tests/fuzz/dataset.py

soak: .venv  ## twenty minutes of faults, deaths and full queues: ten thousand objects, then all that a test draws by chance
	$(BIN)/python -m tests.world.soak
	SEEDS=20 PAIRS=400 $(BIN)/pytest tests/world/test_interleavings.py tests/world/test_crash_points.py --timeout 3600

# The environment: development's packages, the command `tunedrop`, and the functions' layer as Lambda would see it. The
# lists are complete; the pip of Python 3.12.1 takes the extras that one package asks of another for unpinned ones.
.venv: .venv/made
.venv/made: tests/requirements.txt layers/dependencies/requirements.txt pyproject.toml .python-version
	@test -n "$(PYTHON)" || { echo "Tunedrop needs Python 3.12 or newer (3.13 is what it deploys); none was found." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r tests/requirements.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --target .venv/layer/python -r layers/dependencies/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock: .venv  ## pin the newest versions of every dependency, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-annotate --upgrade \
	  --custom-compile-command 'make lock' -o tests/requirements.txt tests/requirements.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-annotate --upgrade \
	  --custom-compile-command 'make lock' -c tests/requirements.txt \
	  -o layers/dependencies/requirements.txt layers/dependencies/requirements.in

clean:  ## remove what was installed and built
	rm -rf .venv .aws-sam .local
