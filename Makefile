# Push-forward. `make book` builds the site, `make test` runs everything; each
# does all the set-up that it needs. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
SITE   := _build/html/index.html
NODE   := tests/site/node_modules/ready

# One thread per process: two processes with two threads each are many times
# slower on two cores than with one.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup book pdf test check unit site-report links serve bench gpu-pending train clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## create .venv and install the pins of requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "This book needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

book: $(READY) ## execute what changed and build the site
	$(BIN)/jupyter-book build . -W --keep-going
	@echo "The book: file://$(CURDIR)/$(SITE)"

pdf: book ## print the whole book (needs Chromium) and link it on the site
	PYTHONPATH=book/_ext $(BIN)/python -m press.printed.pdf
	@$(MAKE) --no-print-directory book

test: check unit ## lint, types, unit tests, pages executed as tests, the site in a browser
	@$(MAKE) --no-print-directory $(NODE) || true
	$(BIN)/pytest tests/book tests/site

check: $(READY) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY) ## the tests of the package
	$(BIN)/pytest tests --ignore=tests/book --ignore=tests/site -n 2 --dist loadfile

$(NODE): tests/site/package-lock.json
	@command -v npm >/dev/null || \
	  { echo "npm is missing: the browser's tests are skipped (apt-get install nodejs npm chromium)"; exit 1; }
	cd tests/site && PUPPETEER_SKIP_DOWNLOAD=1 npm ci --ignore-scripts --no-audit --no-fund \
	  --fetch-retries=1 --loglevel=error
	@touch $@

site-report: book $(NODE) ## measure every page in a browser, write tests/site/REPORT.md
	$(BIN)/python tests/site/report.py

links: book ## ask every site that the book links to, politely; needs a network
	PYTHONPATH=book/_ext $(BIN)/python -m press.proofreading.links _build/html

serve: book ## build, then serve the site on this machine, port 8000
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

bench: $(READY) .venv-bench/ready ## time this package beside its peers, interleaved
	for part in code/benchmarks/*.py; do \
	  case $$part in */interleave.py) ;; *) .venv-bench/bin/python $$part || exit 1 ;; esac; \
	done

.venv-bench/ready: requirements.txt pyproject.toml code/benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -r requirements.txt
	while read -r peer; do \
	  .venv-bench/bin/python -m pip install --quiet $$peer || echo "not installed: $$peer"; \
	done < code/benchmarks/requirements.txt
	@touch $@

gpu-pending: $(READY) ## list the runs that wait for a GPU
	$(BIN)/pushforward runs --pending

train: $(READY) ## make one run: make train RUN=vae/gauss/mlp
	$(BIN)/pushforward train $(RUN)

clean: ## remove the built site and its cache (not .venv)
	rm -rf _build
