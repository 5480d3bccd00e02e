# make demo [TASK=detection], make test: each sets up .venv first where that is needed, or .venv-onedl,
# with the maintained forks of OpenMMLab's packages: make test STACK=onedl. An environment of your own
# that has mmdet and mmseg is used instead: make test PYTHON=/path/to/its/bin/python
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
HAS_STACK = all(map(importlib.util.find_spec, ("torch", "mmengine", "mmdet", "mmseg")))
ifneq ($(filter command environment,$(origin PYTHON)),)
    OWN := $(shell $(PYTHON) -c 'import importlib.util; print($(HAS_STACK))' 2>/dev/null)
endif
TASK ?= segmentation
ifeq ($(filter segmentation detection,$(TASK)),)
    $(error TASK: got '$(TASK)', allowed: segmentation or detection)
endif
STACK ?= official
ifeq ($(filter official onedl,$(STACK)),)
    $(error STACK: got '$(STACK)', allowed: official or onedl)
endif
VENV := $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)
RUN := $(if $(filter True,$(OWN)),$(PYTHON),$(VENV)/bin/python)
BOOTSTRAP := tools/misc/bootstrap.py --stack $(STACK)

# Goals that are no files, or folders that are always looked into.
.PHONY: .venv/implementations .venv/triton env env-segmentation demo data/shapes test test-slow test-cpus \
	coverage parity parity-record benchmark zoo gpu-compile gpu-wheels gpu-report lint types floors docs

# For segmentation, nothing of mmcv has to be compiled.
env-segmentation: WITHOUT := --without-operators

ifeq ($(OWN),True)
env env-segmentation:
	@echo "-- using the environment of $(PYTHON), which has mmdet and mmseg"
else
env env-segmentation:
	@command -v $(PYTHON) >/dev/null || { echo "error: no Python found; on Debian: apt install python3.11" >&2; exit 2; }
	@$(PYTHON) $(BOOTSTRAP) $(WITHOUT)
endif

data/shapes: env
	@$(RUN) tools/dataset_converters/make_shapes.py --out $@

demo: $(if $(filter segmentation,$(TASK)),env-segmentation,env)
	@$(RUN) tools/demo.py --task $(TASK)

# One thread per worker.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test: env
	@$(PYTEST)

test-slow: env
	@$(PYTEST) -m slow

# The numeric tests with other instructions of the CPU, and 1, 2 and 4 threads.
test-cpus: env
	@$(RUN) tools/misc/check_cpus.py

coverage: env
	@$(PYTEST) --cov swinv2_backbone --cov-report term-missing:skip-covered --cov-fail-under 95

# Against the other implementations (tools/benchmarking/implementations.py), a folder at a time.
.venv/implementations: env
	@$(RUN) $(BOOTSTRAP) implementations

FOR_EACH_FOLDER = @set -e; for folder in $(CURDIR)/$(VENV)/implementations/*/; do \
	export SWINV2_IMPLEMENTATIONS=$$(basename $$folder) PYTHONPATH=$$folder;

parity: .venv/implementations
	$(FOR_EACH_FOLDER) $(PYTEST) tests/parity; done

parity-record: .venv/implementations
	$(FOR_EACH_FOLDER) $(RUN) -m tests.parity.recorded; done

# Against the other implementations' speed and memory: about two hours on 2 cores. --help for other sets.
BENCHMARK := $(RUN) tools/analysis_tools/benchmark.py

benchmark: .venv/implementations
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_fp32 --cases infer:256:8:1 infer:512:8:1 \
		infer:512:16:1 train:512:8:1 train:512:16:1 infer:800x1344:16:1 infer:1024:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_sequential --windows-at-once 1 --implementations --rounds 5 \
		--cases infer:512:16:1 infer:1024:16:1 train:512:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_bf16 --dtype bf16 --rounds 3 \
		--cases infer:512:8:1 infer:512:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_bf16_backward --dtype bf16 --half-backward --implementations \
		--cases train:512:8:1 train:512:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_large --rounds 2 \
		--implementations timm transformers --cases train:800x1344:16:2

# docs/model_zoo.md and the metafiles; configs that are new are measured first, a minute or so each.
zoo: env
	@$(RUN) tools/analysis_tools/model_zoo.py

# For NVIDIA GPUs, docs/gpu.md. All kernels, compiled for GPUs that are not there: a few minutes.
.venv/triton: env
	@$(RUN) $(BOOTSTRAP) triton

gpu-compile: .venv/triton
	@$(RUN) tools/analysis_tools/gpu_compile.py

# On a machine with a GPU: checks and timings, in 9 minutes. Without a network it needs the wheels
# that `make gpu-wheels` downloads elsewhere. Without a GPU it prints the command for that machine.
gpu-wheels:
	@$(PYTHON) tools/misc/carry_wheels.py

gpu-report:
	@python=$(RUN); command -v $$python >/dev/null || python=$(PYTHON); \
	$$python -c 'import mmengine' 2>/dev/null || $$python -m pip install -q --no-index --no-deps \
		--find-links .gpu_wheels -r .gpu_wheels/names.txt; \
	$$python tools/analysis_tools/gpu_report.py

lint: env
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m codespell_lib
	@$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()"

types: env
	@$(RUN) -m mypy swinv2_backbone

# The core tests with the oldest torch that setup.py allows, and with the newest.
floors:
	@$(PYTHON) tools/misc/check_torch.py floor
	@$(PYTHON) tools/misc/check_torch.py newest

# The site, into work_dirs/site, by an environment that has mkdocs alone: the extra [docs] of setup.py.
DOCS := work_dirs/docs_env

$(DOCS)/installed: constraints.txt Makefile
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/pip -q --disable-pip-version-check install -c constraints.txt \
		mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

docs: $(DOCS)/installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
