# The two commands to know: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
PORT   ?= 8080
ORDERS ?= 200
EXIT   ?=
DATA   ?= data
SEEDS  ?= 0:2000
HOURS  ?= 8

BIN    := .venv/bin
STAMP  := .venv/.installed
SUITES := $(BIN)/python ops/run_suites.py

MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run cluster test check contract guard guard-record conformance conformance-record conformance-mutants e2e chaos chaos-cluster fence-race simulation simulation-mutants soak bench bench-ci bench-embedded bench-compare bench-micro bench-budget bench-stores bench-search million open-workflows open-cost services lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Podium needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || { echo "Python cannot make virtual environments here: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "setup: creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "setup: installing Podium and its tools into .venv (a minute or two, the first time)"
	@$(BIN)/pip install --quiet --retries 5 --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

run: setup ## the engine and the order demo (ORDERS=200 EXIT= PORT=8080 DATA=data)
	@$(BIN)/python -m ops.run_demo --port $(PORT) --data $(DATA) --orders $(ORDERS) $(if $(EXIT),--exit)

cluster: setup services ## Cassandra, Redis, three nodes and the order demo (ORDERS=200 EXIT= PORT=8080)
	@$(BIN)/python -m ops.run_cluster --port $(PORT) --orders $(ORDERS) $(if $(EXIT),--exit)

test: setup services ## all tests; one line per suite at the end
	@$(SUITES) --no-skips

check: setup ## format, lint, types, unit tests and 200 simulated clusters: the quick round
	@$(SUITES) lint types unit
	@$(BIN)/python -m tests.simulation.simulate --seeds 0:200

contract: setup services ## each store and queue port against every implementation
	@$(SUITES) contract

guard: setup services ## calls, log bytes, SQL, CQL per workflow beside a stored reference: fails on +5 %
	@$(SUITES) guard

guard-record: setup services ## store what is counted now as the reference
	@$(BIN)/python -m tests.guard.guard --record --only embedded
	@$(BIN)/python -m tests.guard.guard --record --only cluster

conformance: setup services ## the same requests to the real Conductor and to ours
	@$(SUITES) conformance

conformance-record: setup services ## ask the real Conductor anew for the answers kept in tests/conformance/recorded
	@env -u CONDUCTOR_URL $(BIN)/python -m pytest -q tests/conformance/test_conformance.py --record

conformance-mutants: setup ## break 20 rules and see that their cases notice (SEED=1; after make conformance)
	@$(BIN)/python -m tests.conformance.mutants $(if $(SEED),--seed $(SEED))

e2e: setup ## real processes, the official SDK, hostile input
	@$(SUITES) e2e

chaos: setup services ## kill -9 and every other fault under load, then count what was acknowledged
	@$(SUITES) chaos

chaos-cluster: setup services ## the faults of a cluster, longer and over a ring of three (CHAOS_LENGTH=4 CHAOS_SEED=)
	@CHAOS_RING=3 CHAOS_LENGTH=$(or $(CHAOS_LENGTH),4) $(BIN)/python -m pytest -q tests/chaos/cluster

simulation: setup ## whole clusters on a virtual clock: 2,000 seeds (SEEDS=0:2000; one seed: SEEDS=17)
	@$(BIN)/python -m tests.simulation.simulate --seeds $(SEEDS) $(if $(findstring :,$(SEEDS)),--schedules 20 --demand-all,--trace)

simulation-mutants: setup ## break the code in two dozen ways and see after how many seeds it is noticed
	@$(BIN)/python -m tests.simulation.mutants

soak: setup ## the simulation for hours (HOURS=8), from a random seed on
	@$(BIN)/python -m tests.simulation.simulate --seeds $$(od -An -N3 -tu4 /dev/urandom | tr -d ' ') --minutes $$(($(HOURS) * 60))

bench: setup services ## a node and a cluster under load, with a page of plots; next to nothing else (MINUTES=10)
	@$(BIN)/python -m bench.campaign --minutes $(or $(MINUTES),10)

bench-ci: setup services ## the load tests with their accounts, short: lost, twice or stuck is found
	@$(SUITES) bench

bench-embedded: setup ## throughput, CPU per workflow, CPU per task as workflows grow; next to nothing else
	@$(BIN)/python -m bench.embedded
	@$(BIN)/python bench/cost_per_task.py

bench-compare: setup services ## the same load on Podium and on the real Conductor, side by side
	@$(BIN)/python -m bench.compare

fence-race: setup services ## owners steal shards from each other on a real Cassandra; nothing may get lost (TAKEOVERS=3000 NODES=1)
	@$(BIN)/python -m tests.support.fence_race --takeovers $(or $(TAKEOVERS),3000) --nodes $(or $(NODES),1)
	@$(BIN)/python -m tests.support.fence_race --takeovers 300 --nodes $(or $(NODES),1) --without-fence-read

bench-micro: setup services ## the decider by itself, and what Cassandra and Redis cost per operation
	@$(BIN)/python -m bench.decider
	@$(BIN)/python -m bench.stores
	@$(BIN)/python -m bench.queues

bench-budget: setup services ## where the CPU of a workflow goes, stage by stage (docs/performance.md)
	@$(BIN)/python -m bench.budget

bench-stores: setup services ## requests, bytes and CPU that Cassandra costs per append and checkpoint; next to nothing else
	@$(BIN)/python bench/stores.py

bench-search: setup services ## first pages of searches over stored workflows, SQLite and Cassandra; next to nothing else (COUNT=1000000)
	@$(BIN)/python -m bench.search --count $(or $(COUNT),1000000)
	@$(BIN)/python -m bench.search --count $(or $(COUNT),1000000) --store cassandra

million: setup services ## a million open workflows, injuries under them, an account of every one; next to nothing else (COUNT=1000000)
	@$(BIN)/python -m bench.million --count $(or $(COUNT),1000000)

open-workflows: setup services ## a million open workflows on one node: rate beside them, memory, kill and restart (COUNT=1000000)
	@$(BIN)/python -m bench.open_workflows --count $(or $(COUNT),1000000)

open-cost: setup ## what 100,000 open workflows cost those that run, one process with SQLite; next to nothing else
	@$(BIN)/python -m bench.open_cost

services: setup ## install Redis, PostgreSQL, MariaDB, a JDK and Maven by apt, fetch Cassandra, Kafka and Conductor (the tests need them)
	@./ops/services.sh
	@$(BIN)/python -m ops.cassandra_up fetch
	@$(BIN)/python -m ops.kafka_up fetch
	@PYTHON=$(BIN)/python ./ops/conductor_up.sh fetch

lock: ## write constraints.txt anew from the newest versions that fit pyproject.toml
	@rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --editable '.[dev]'
	@build/lock/bin/pip freeze --exclude-editable > constraints.txt && rm -rf build/lock

clean: ## remove .venv, caches and reports; the data folder stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
