PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .peers
OTHERS := .versions
STAMP  := $(VENV)/.installed

.PHONY: help docs test-versions notebooks demo check test slow-tests test-faults test-scale soak test-gpu lint types bench curves bench-peers planning-peers torchgfn active-inference environment-peers clean

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

notebooks: $(STAMP)  ## run the scripts in docs/notebooks, and write the notebooks beside them
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebooks.py

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

# Each version has its own environment, made by uv with a Python that pyenv has or uv finds: `lowest` is Python 3.11 with the lowest version
# that pyproject.toml allows of every direct dependency; the others have ArviZ 1 and are pinned by constraints.txt.
VERSIONS := lowest 3.12 3.13
python_of = $(firstword $(wildcard $(HOME)/.pyenv/versions/$1.*/bin/python) $1)

.PRECIOUS: $(OTHERS)/%/.installed
$(OTHERS)/%/.installed: pyproject.toml constraints.txt | $(STAMP)
	$(BIN)/uv venv --quiet --clear --no-python-downloads --python $(call python_of,$(if $(filter lowest,$*),3.11,$*)) $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python -e ".[dev]" \
		$(if $(filter lowest,$*),--resolution lowest-direct,-c constraints.txt)
	@touch $@

test-versions: $(VERSIONS:%=test-with-%)  ## the quick tests with the lowest dependencies, on Python 3.12 and on 3.13

# What `make check` runs, and all that is about ArviZ's data.
test-with-%: $(OTHERS)/%/.installed
	OMP_NUM_THREADS=1 $(OTHERS)/$*/bin/python -m pytest -q -m "not slow" -p no:cacheprovider -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(OTHERS)/$*/bin/python -m pytest -q -m slow -p no:cacheprovider -n 2 --dist worksteal tests/inference tests/inspect

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

curves: $(STAMP)  ## the learning curves of benchmarks/results/curves, but the long ones (an hour and a quarter)
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

environment-peers: $(STAMP) $(PEERS)/environments/.installed  ## other libraries' agents on these environments, against the exact answers
	OMP_NUM_THREADS=1 $(PEERS)/environments/bin/python -m benchmarks.peers.on_our_environments

clean:           ## remove what make made
	rm -rf $(VENV) $(PEERS) $(OTHERS) build dist site *.egg-info
