# Two commands for newcomers: `make reproduce` and `make test`. Each does its own set-up.
BUILD   ?= build/release
PROFILE ?= default
SHARD   ?= 0/1
JOBS    ?= $(shell nproc)
LTE      = $(BUILD)/lte
PROTOCOL = $(if $(filter full,$(PROFILE)),quality,$(PROFILE))

.PHONY: help deps build program test reproduce bench compare report claims data check format gpu gpu-reproduce clean
help:
	@echo "make reproduce [PROFILE=default|smoke|search|full|text] [SHARD=i/n]   run the comparison and write results/"
	@echo "make test       build and run all tests"
	@echo "make bench [SUITE=decode] [OUT=folder] [FLAGS=...]   the benchmark programs, JSON in results/raw/DATE-bench"
	@echo "make compare A=... B=... [SUITE=...]   two timings: result files or folders of them, or two build folders"
	@echo "make report     tables, plots and pages again from results/records.jsonl"
	@echo "make claims     hold results/claims.toml against the records"
	@echo "make data       fetch the downloadable datasets (LTE_DATA_MIRROR is looked in first)"
	@echo "make check      format, include arrows, file sizes, shell scripts"
	@echo "make gpu [PARTS=\"build tests suites torch\"] [SUITE=...]   with CUDA: build, tests, benchmark programs, a table"
	@echo "make gpu-reproduce   suites/gpu.toml, trained and timed on the GPU, into results/gpu"
	@echo "make format     clang-format all sources;  make clean: remove build/"

deps:
	@scripts/setup.sh

build: deps
	@cmake --preset release -B $(BUILD) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build $(BUILD) -j $(JOBS)

program: deps
	@cmake --preset release -B $(BUILD) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build $(BUILD) -j $(JOBS) --target lte

test: build
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS); code=$$?; \
	awk '/: Skipped$$/ { getline; why[$$0]++ } END { for (w in why) print "skipped: " why[w] " cases: " w }' \
	  $(BUILD)/Testing/Temporary/LastTest.log; exit $$code

reproduce: program
	@case "$(PROFILE)" in text|search) datasets/fetch.sh data;; esac
	@$(LTE) run suites/$(PROTOCOL).toml --shard $(SHARD)

# The programs are those of add_suite in CMakeLists.txt; FLAGS go to each, such as --threads=1 or --backend=cpu.
SUITES  := $(shell sed -n 's/^add_suite(\(.*\))$$/\1/p' CMakeLists.txt)
SUITE   ?= $(SUITES)
OUT     ?= results/raw/$(shell date -u +%F)-bench
bench: deps
	@cmake --preset release -B $(BUILD) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build $(BUILD) -j $(JOBS) --target $(addprefix bench_,$(SUITE))
	@scripts/bench.sh $(BUILD) "$(OUT)" "$(SUITE)" "$(FLAGS)"

compare: program
	@scripts/compare.sh $(LTE) "$(A)" "$(B)" "$(SUITE)" "$(FLAGS)"

report: program
	@$(LTE) report
claims: program
	@$(LTE) claims

data:
	@datasets/fetch.sh data

check:
	@scripts/check.sh
format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

# Without `deps`: a machine with a GPU may have the libraries elsewhere, and no packages to install.
PARTS   ?= build tests suites torch
gpu gpu-reproduce: export BUILD := build/cuda
gpu gpu-reproduce: export JOBS := $(JOBS)
gpu: export SUITE := $(if $(filter file,$(origin SUITE)),,$(SUITE))
gpu: export OUT := $(if $(filter file,$(origin OUT)),,$(OUT))
gpu:
	@scripts/gpu.sh "$(PARTS)"

# The committed records are of CPUs and stay as they are.
gpu-reproduce:
	@scripts/gpu.sh "program"
	@why=$$($(BUILD)/lte info | sed -n 's/^backend cuda (not here: \(.*\))$$/\1/p'); \
	if [ -n "$$why" ]; then echo "gpu-reproduce: no device ($$why): not run"; exit 1; fi
	@datasets/fetch.sh data wikitext-2
	@$(BUILD)/lte run suites/gpu.toml --backend cuda+tf32+fused --work runs/gpu --results results/gpu

clean:
	rm -rf build
