#!/usr/bin/env bash
# Runs benchmark programs of a build folder, one result file each. All of them run, even where one fails.
# usage: bench.sh BUILD OUT "SUITE ..." ["FLAG ..."]
set -uo pipefail
[ $# -ge 3 ] || { echo "usage: $0 BUILD OUT \"SUITE ...\" [\"FLAG ...\"]"; exit 2; }
build=$1 out=$2 suites=$3
read -ra flags <<< "${4:-}"
mkdir -p "$out" || exit 1
failed=0
for suite in $suites; do
  "$build/bench_$suite" --benchmark_repetitions=9 --benchmark_min_time=0.05 \
    --benchmark_display_aggregates_only=true --benchmark_out_format=json \
    --benchmark_out="$out/$suite.json" "${flags[@]}" || { echo "bench: $suite failed"; failed=1; }
done
echo "bench: $out"
exit $failed
