# make demo [TASK=detection], make test: each sets up .venv first where that is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
TASK ?= segmentation
ifeq ($(TASK),segmentation)
    NAME := upernet_swinv2_tiny_shapes
else ifeq ($(TASK),detection)
    NAME := mask_rcnn_swinv2_tiny_shapes
else
    $(error TASK: got '$(TASK)', allowed: segmentation or detection)
endif
CONFIG := configs/$(TASK)/$(NAME).py
WORK := work_dirs/$(NAME)
RUN := .venv/bin/python

# Goals that are no files, or folders that are always looked into.
.PHONY: .venv/implementations env demo data/shapes test test-slow parity parity-record benchmark lint

env:
	@command -v $(PYTHON) >/dev/null || { echo "error: no Python found; on Debian: apt install python3.11" >&2; exit 2; }
	@$(PYTHON) tools/misc/bootstrap.py

data/shapes: env
	@$(RUN) tools/dataset_converters/make_shapes.py --out $@

# The demo is made for CPUs, and mmcv's operators may be compiled for them alone.
demo: export CUDA_VISIBLE_DEVICES = -1
demo: data/shapes
	@$(RUN) tools/train.py $(CONFIG) --resume
	@$(RUN) tools/analysis_tools/side_by_side.py $(CONFIG) $(WORK) --out $(WORK)/predictions.png
	@$(RUN) tools/test.py $(CONFIG) $(WORK) --baseline
	@echo "-> $(WORK)/predictions.png: image, truth and prediction"

test: env
	@$(RUN) -m pytest -q

test-slow: env
	@$(RUN) -m pytest -q -m slow

# Against the other implementations, which lie in folders of their own: see tools/misc/bootstrap.py.
HF := SWINV2_IMPLEMENTATIONS="transformers timm torchvision" PYTHONPATH=.venv/implementations/hf
MMPRETRAIN := SWINV2_IMPLEMENTATIONS="mmpretrain" PYTHONPATH=.venv/implementations/mmpretrain

.venv/implementations: env
	@$(PYTHON) tools/misc/bootstrap.py implementations

parity: .venv/implementations
	@$(HF) $(RUN) -m pytest -q tests/parity
	@$(MMPRETRAIN) $(RUN) -m pytest -q tests/parity

parity-record: .venv/implementations
	@$(HF) $(RUN) -m tests.parity.recorded
	@$(MMPRETRAIN) $(RUN) -m tests.parity.recorded

# Against the other implementations' speed and memory: hours on 2 cores. --help for other sets.
BENCHMARK := $(RUN) tools/analysis_tools/benchmark.py

benchmark: .venv/implementations
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_fp32 --cases infer:256:8:1 infer:512:8:1 \
		infer:512:16:1 train:512:8:1 train:512:16:1 infer:800x1344:16:1 infer:1024:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_sequential --windows-at-once 1 --implementations --rounds 5 \
		--cases infer:512:16:1 infer:1024:16:1 train:512:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_bf16 --dtype bf16 --rounds 3 \
		--cases infer:512:8:1 infer:512:16:1
	@$(BENCHMARK) --out work_dirs/benchmark/cpu_large --rounds 2 \
		--implementations timm transformers --cases train:800x1344:16:2

lint: env
	@$(RUN) -m ruff check .
