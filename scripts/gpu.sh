#!/usr/bin/env bash
# Builds with CUDA, runs the tests of the GPU, then the benchmark programs on it with few repetitions, and PyTorch
# beside them where it is installed. Ends with a short table. Where there is no GPU it builds and says what was not run.
# usage: gpu.sh ["build tests suites torch"]     environment: BUILD, OUT, JOBS, SUITE     program: builds lte alone
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
parts=" ${1:-build tests suites torch} " build=${BUILD:-build/cuda} jobs=${JOBS:-$(nproc)} failed=0
read -ra suites <<< "${SUITE:-ffn_kernel ffn_layer decode prefill train_step}"
wants() { [[ $parts == *" $1 "* ]]; }
say() { echo "gpu: $*"; }
fail() { say "$*"; failed=1; }

# Which rows of a program, by a pattern of their names; the others take longer than they tell.
rows() {
  case $1 in
    ffn_kernel) echo 'synthetic/(gpt2-medium/f32|llama2-7b/bf16)/.*tokens:(1|4|16|64)/' ;;
    ffn_layer) echo 'active_permille:250/layer:0/' ;;
    decode) echo 'synthetic/(gpt2-medium/bf16/.*batch:(1|4|16|64)|llama2-7b/bf16/.*batch:(1|4|16))/' ;;
    prefill) echo 'synthetic/(gpt2-medium/bf16|llama2-7b:layers=4/f32)/.*tokens:512/' ;;
    *) echo . ;;
  esac
}

# name, microseconds and counters of the medians of a result file, one row a line
table() {
  awk '
    function text(line) { sub(/^[^:]*: "/, "", line); sub(/",?$/, "", line); return line }
    function number(line) { sub(/^[^:]*: /, "", line); sub(/,$/, "", line); return line + 0 }
    /^ *"run_name":/ { name = text($0); sub("/manual_time", "", name); median = 0; delete has }
    /"aggregate_name": "median"/ { median = 1 }
    /"real_time":/ { time = number($0) }
    /"(GBps|of_copy|of_gemm|x_dense|x_masked|ideal|active)":/ { split($0, part, "\""); has[part[2]] = number($0) }
    function show(key, form) { return (key in has) ? sprintf(form, has[key]) : "-" }
    /^ *}/ && median {
      printf "%-78s %10.1f %7s %7s %7s %7s %7s\n", name, time, show("active", "%.3f"), show("of_copy", "%.3f"),
        show("of_gemm", "%.3f"), show("x_dense", "%.2f"), show("ideal", "%.2f")
      median = 0
    }' "$1"
}

if wants build || wants program; then
  start=$SECONDS
  mkdir -p build
  # On a machine with a GPU for that one alone.
  arch=()
  [ -n "$(nvidia-smi -L 2> /dev/null)" ] && arch=(-DCMAKE_CUDA_ARCHITECTURES=native)
  configure() { cmake --preset cuda -B "$build" "${arch[@]}" > "$build.log" 2>&1; }
  # A library may be missing: where packages can be installed, they are.
  if ! configure && ! { scripts/setup.sh && configure; }; then
    tail -n 20 "$build.log"
    say "CMake found no toolkit or no library: see $build.log"
    exit 1
  fi
  targets=(lte)
  wants program || targets+=(gpu_tests "${suites[@]/#/bench_}")
  cmake --build "$build" -j "$jobs" --target "${targets[@]}" || { say "the build failed"; exit 1; }
  say "built in $((SECONDS - start)) s"
fi
[ "$parts" = " build " ] || [ "$parts" = " program " ] && exit 0
[ -x "$build/lte" ] || { say "$build/lte is missing; build first"; exit 1; }

missing=$("$build/lte" info | sed -n 's/^backend cuda (not here: \(.*\))$/\1/p')
if [ -n "$missing" ]; then
  say "no device ($missing): compiled and linked; tests on the GPU, ${suites[*]} and torch: not run"
  exit 0
fi
device=$("$build/lte" info | sed -n 's/^gpu: \(.*\), CUDA.*$/\1/p' | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
out=${OUT:-results/raw/$(date -u +%F)-gpu-$device}
mkdir -p "$out" || exit 1
nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true

if wants tests; then
  start=$SECONDS
  ctest --test-dir "$build" -L gpu --no-tests=error --output-on-failure -j "$((jobs < 4 ? jobs : 4))" || fail "tests failed"
  cp "$build/Testing/Temporary/LastTest.log" "$out/tests.log"
  skipped=$(awk '/: Skipped$/ { getline; why[$0]++ } END { for (w in why) print why[w] " cases:" w }' "$out/tests.log")
  [ -n "$skipped" ] && say "skipped: $skipped"
  say "tests in $((SECONDS - start)) s"
fi

if wants suites; then
  for suite in "${suites[@]}"; do
    start=$SECONDS
    scripts/bench.sh "$build" "$out" "$suite" "--backend=cuda --benchmark_repetitions=3 --benchmark_min_time=0.01 --benchmark_filter=$(rows "$suite")" \
      > "$out/$suite.txt" 2>&1 || { fail "$suite failed:"; tail -n 5 "$out/$suite.txt"; }
    say "$suite in $((SECONDS - start)) s: $(grep -oE '[0-9]+ rows, .*' "$out/$suite.txt" | tail -n 1)"
  done
fi

if wants torch; then
  if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    python3 scripts/torch_ffn.py > "$out/torch_ffn.json" || fail "torch_ffn.py failed"
    # A training step of GPT-2 (124M) on both sides, PyTorch's compiled.
    "$build/lte" bench-step --model gpt2 --batch 16 --seq 1024 --compare cuda+bf16+fused --rounds 3 --steps 3 --json \
      > "$out/bench_step.json" || fail "bench-step failed"
    python3 suites/peers/torch_train.py --device cuda --dtype bf16 --compile --dim 768 --layers 12 --heads 12 --ffn 3072 \
      --vocab 50257 --batch 16 --seq 1024 --rounds 3 --steps 6 > "$out/torch_train.json" || fail "torch_train.py failed"
  else
    say "PyTorch with a GPU is not installed: the comparison with it was not run"
  fi
fi

printf '%-78s %10s %7s %7s %7s %7s %7s\n' row us active of_copy of_gemm x_dense ideal
for suite in "${suites[@]}"; do [ -s "$out/$suite.json" ] && table "$out/$suite.json"; done
[ -s "$out/torch_ffn.json" ] && cat "$out/torch_ffn.json"
for step in bench_step torch_train; do [ -s "$out/$step.json" ] && cat "$out/$step.json"; done
say "$out"
exit "$failed"
