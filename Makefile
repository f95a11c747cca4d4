PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .peers
STAMP  := $(VENV)/.installed

.PHONY: help demo check test slow-tests test-faults test-scale soak test-gpu lint types docs bench curves bench-peers planning-peers torchgfn active-inference clean

help:            ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Everything the targets need, pinned by constraints.txt. torch comes first and by its exact version,
# so that nothing pulls another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: $(STAMP)   ## the main job: FrozenLake 8x8, its guide, its posterior, its dynamics gap
	$(BIN)/rlai compare FrozenLake-v1 --map-name 8x8 --horizon 100 --temperature 0.005 \
		--out runs/frozen_lake --overwrite

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Types are checked while tests run; both must pass.
check: $(STAMP) lint  ## lint, types and the quick tests, in two minutes
	tools/check_wheel.sh $(BIN) & $(PYTEST) -q -m "not slow" && wait $$!

test: $(STAMP) lint  ## lint, types, tests, docs' and docstrings' examples
	tools/check_wheel.sh $(BIN) & $(PYTEST) && wait $$!

slow-tests: $(STAMP)  ## measure which tests `make check` leaves out
	$(PYTEST) -q --measure

test-faults: $(STAMP)  ## a hundred SIGKILLs, thousands of damaged files, threads, wrong calls (twenty minutes)
	RLAI_FAULTS=long $(PYTEST) tests/faults tests/test_turns.py tests/test_host.py tests/test_wrong_calls.py tests/test_memory.py

test-scale: $(STAMP)  ## ranks, islands, sweeps that are killed, actors, at length (and a local Ray cluster, if Ray is installed)
	RLAI_SCALE=long $(PYTEST) tests/distributed tests/sampling/test_islands.py tests/sweeps tests/agents/test_actors.py \
		tests/agents/test_ray_actors.py tests/agents/test_residual.py

soak: $(STAMP)  ## an hour of everything again and again: whether memory grows
	$(BIN)/python -m benchmarks.soak

test-gpu: $(STAMP)  ## the tests that need a GPU
	$(BIN)/pytest -m cuda

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict, and the contract on which room may import which
	tools/check_wheel.sh $(BIN)

# The theme's notice is of versions to come; what is installed is pinned.
docs: $(STAMP)   ## the site, in site/index.html; a broken link or an unnamed page is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## the benchmarks, as one table
	$(BIN)/python -m benchmarks.run

curves: $(STAMP)  ## the learning curves of benchmarks/results/curves, but the long one (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.learning

# A peer has its own environment, made like the one above; its folder's name has underscores.
.SECONDEXPANSION:
$(PEERS)/%/.installed: benchmarks/peers/requirements-$$(subst _,-,$$*).txt
	$(PYTHON) -m venv $(@D)
	grep '^torch==' $< | xargs -r $(@D)/bin/python -m pip install --quiet --disable-pip-version-check
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-peers: $(STAMP) $(PEERS)/stable_baselines3/.installed $(PEERS)/sbx/.installed  ## soft actor-critic against other libraries
	$(BIN)/python -m benchmarks.peers.run

planning-peers: $(STAMP) $(PEERS)/torchrl/.installed  ## planning on the pendulum, beside TorchRL's planner
	$(BIN)/python -m benchmarks.planning pendulum

active-inference: $(STAMP) $(PEERS)/pymdp/.installed  ## pymdp in the T-maze, beside the belief optimum
	$(BIN)/python -m benchmarks.peers.against_pymdp

torchgfn: $(STAMP) $(PEERS)/torchgfn/.installed  ## torchgfn's losses on its HyperGrid, beside path consistency
	$(BIN)/python -m benchmarks.peers.against_torchgfn

clean:           ## remove what make made
	rm -rf $(VENV) $(PEERS) build dist site *.egg-info
