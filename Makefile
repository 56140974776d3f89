# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= $(CURDIR)/runs

.PHONY: demo cluster-demo test test-faults test-gpu soak lint bench lock browser clean

demo: .venv/installed
	$(BIN)/python -m data import source=synthetic out=$(RUNS)/demo/data
	$(BIN)/python -m pretrain pretrain/recipes/synthetic.yaml data=$(RUNS)/demo/data run=$(RUNS)/demo/pretrain cluster.num_workers=2
	$(BIN)/python -m finetune finetune/recipes/synthetic.yaml data=$(RUNS)/demo/data encoder=$(RUNS)/demo/pretrain out=$(RUNS)/demo/finetune cluster.num_workers=2
	@echo "report: $(RUNS)/demo/finetune/report.html"

# The same on a Ray cluster of this machine: a head and two workers, token authentication on, two submitted jobs.
cluster-demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" clusters/demo.sh $(RUNS)/cluster-demo

test: .venv/installed browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Faults under a real Ray: workers killed, stopped and stuck, drivers killed, nodes taken back.
test-faults: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -s

# On a real GPU, which the others leave alone: what they promise to the bit they promise on CPUs.
test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu

# A random kill every KILL_EVERY_S seconds for MINUTES: what share of the time is training, how fast is recovery.
MINUTES ?= 30
KILL_EVERY_S ?= 150
soak: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(RUNS)/soak $(MINUTES) $(KILL_EVERY_S)

# The tests of HTML pages want a Chromium. CI installs Debian's; elsewhere they skip where there is none, and say so.
browser:
	@command -v chromium chromium-browser google-chrome > /dev/null || [ "$$CI" != true ] || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; }

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks

# The lock is universal (Python 3.11 and later, every platform) and has a hash for each file.
# uv installs it; pip fetches the uv that the lock names, by its hash.
.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	awk '/^uv==/ {found = 1} found {print} found && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement .venv/uv.lock
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	touch $@

# Google Cloud's lock has what requirements.lock has at the same versions, so that it can be installed beside it.
lock:
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras --universal --generate-hashes --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock
	$(BIN)/uv pip compile --group gcp --constraint requirements.lock --universal --generate-hashes --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --quiet --output-file clusters/gcp.lock

clean:
	rm -rf .venv runs
