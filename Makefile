# Every command a user or a contributor needs. `make` alone lists them.
# Needs only make and Python 3.10 or newer with venv; choose one with `make PYTHON=python3.12 test`.

PYTHON ?= python3
VENV ?= .venv
# The folder of links: lgvit_edge/ with export/, runtime/ and benchmarks/ inside it, as installed.
LINKS ?= build/links
# The bundle that `make bench` measures, and what else to pass (e.g. BENCH_ARGS="--data DIR").
BUNDLE ?= out-demo/bundle
BENCH_ARGS ?=
# How long `make fuzz` lasts.
MINUTES ?= 10
# Where the oldest versions are installed, and what is run on them: what touches a dependency.
OLDEST ?= build/oldest-venv
OLDEST_TESTS ?= $(addprefix tests/,_support bundle camera images policies tuning benchmarks/test_report.py \
	cli/test_cli.py cli/test_named_files.py export/test_precision.py model/checkpoints/test_hub.py \
	offline/test_parts.py probing/test_overlay.py \
	project/test_packaging.py runtime/test_openvino.py runtime/test_session_manners.py \
	training/test_training.py)
# The models that timm's weights are compared with; tools/timm_names.py reads the same version.
TIMM := timm==1.0.31
# NVIDIA's Python bindings without the libraries (1 MB each): the tests hold our calls against them.
BINDINGS := tensorrt_bindings==8.6.1 tensorrt_cu12_bindings==10.3.0 \
	tensorrt_cu13_bindings==10.16.1.11 tensorrt_cu13_bindings==11.4.0.106

# Absolute, because mypy and import-linter run from inside the folder of links.
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest fuzz audit check map bench dev format links clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## set up, then run the whole main job on data that needs no download
	$(BIN)/lgvit-edge demo

test: $(VENV)/.dev ## set up, then run the tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST)/.done ## the tests of what we depend on, with the oldest versions declared
	$(OLDEST)/bin/pytest -n 2 --dist loadfile -W ignore::DeprecationWarning $(OLDEST_TESTS)

fuzz: $(VENV)/.dev ## change files of every kind by the thousand: make fuzz MINUTES=10
	$(BIN)/python tests/fuzz/fuzzing.py --minutes $(MINUTES)

audit: build/audit-venv ## look up known weaknesses of the pinned packages; needs the network
	build/audit-venv/bin/pip-audit --no-deps --disable-pip -r constraints.txt

build/audit-venv:
	$(PYTHON) -m venv $@
	$@/bin/pip --disable-pip-version-check install --quiet 'pip-audit>=2.9,<3'

check: $(VENV)/.dev links ## lint, format, types, import rules and no circles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(LINKS) && $(BIN)/mypy --strict --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/build/mypy_cache -p lgvit_edge
	cd $(LINKS) && PYTHONPATH=. $(BIN)/lint-imports --config $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/build/import_linter_cache
	@$(MAKE) --no-print-directory map > build/map || { tail -n 5 build/map; exit 1; }

map: $(VENV)/.dev links ## modules per folder, imports between folders, circles
	@cd $(LINKS) && PYTHONPATH=. $(BIN)/python $(CURDIR)/tools/import_map.py

bench: $(VENV)/.demo ## measure the demo's bundle: overhead of cutting, host costs, bench
	@test -f $(BUNDLE)/manifest.json || $(MAKE) demo
	$(BIN)/python -m lgvit_edge.benchmarks.experiments.overhead --engines $(BUNDLE)
	$(BIN)/python -m lgvit_edge.benchmarks.experiments.host --engines $(BUNDLE)
	$(BIN)/lgvit-edge bench --engines $(BUNDLE) $(BENCH_ARGS)

dev: $(VENV)/.dev links ## everything a contributor needs
	@echo "Ready: . $(VENV)/bin/activate, then make check and make test. Point your editor at $(LINKS)."

format: $(VENV)/.dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Static tools do not follow the package mapping of an editable install and would pass over the
# mapped folders unseen; through these links they see every file as it stands, with no reinstall.
links:
	@rm -rf $(LINKS)
	@mkdir -p $(LINKS)/lgvit_edge
	@for entry in lgvit_edge/* export runtime benchmarks; do \
		case $$entry in */__pycache__) ;; *) ln -s "$(CURDIR)/$$entry" $(LINKS)/lgvit_edge/ ;; esac; \
	done

clean: ## remove the environment, build products and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find lgvit_edge export runtime benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is set up again only when its requirements change.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "No '$(PYTHON)' here. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "lgvit-edge needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
		echo "Name a newer one: make PYTHON=python3.12"; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv. On Debian and Ubuntu: sudo apt install python3-venv"; \
		exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The oldest versions have wheels for Python 3.10 to 3.12. Some warn of what newer packages beside
# them do, so those warnings are no errors there.
$(OLDEST)/.done: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || { \
		echo "The oldest versions want Python 3.10 to 3.12; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another: make PYTHON=python3.11 test-oldest"; \
		exit 1; }
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt \
		-e '.[cpu,export,train,hub,tune,camera,report,openvino,dev]'
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing lgvit-edge into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(PIP) -e '.[cpu,export,train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing lgvit-edge and its tools into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(PIP) -e '.[cpu,export,train,dev]'
	@for spec in $(BINDINGS); do \
		$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps \
			--dest $(VENV)/nvidia-bindings $$spec || echo "without $$spec its tests will skip"; \
	done
	@$(BIN)/python tools/triton.py $(VENV)/triton || echo "without it the tests with Triton will skip"
	@# Alone, because it asks for torchvision: tests compare with its models, which do not need it.
	@$(PIP) --no-deps $(TIMM) || echo "without $(TIMM) its tests will skip"
	@touch $(VENV)/.demo $@
