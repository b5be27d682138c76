#!/usr/bin/env bash
# Holds two timings against each other. A and B are result files or folders of them; or two build folders,
# whose programs are then run in turn, A B B A A B ..., so that both see the same minutes of the machine.
# usage: compare.sh LTE A B "SUITE ..." ["FLAG ..."]        exit code: that of `lte compare`
set -uo pipefail
if [ $# -lt 4 ] || [ -z "$2" ] || [ -z "$3" ]; then
  echo "usage: make compare A=... B=... [SUITE=...] [FLAGS=...]"
  exit 2
fi
lte=$1 a=$2 b=$3 suites=$4
read -ra flags <<< "${5:-}"
rounds=9
if [ ! -f "$a/CMakeCache.txt" ] || [ ! -f "$b/CMakeCache.txt" ]; then
  exec "$lte" compare "$a" "$b"
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/a" "$dir/b"
for suite in $suites; do
  for side in a b; do
    build=${!side}
    [ -x "$build/bench_$suite" ] || { echo "compare: $build has no bench_$suite; build that target there first"; exit 2; }
  done
  for ((round = 1; round <= rounds; ++round)); do
    sides="a b"
    ((round % 2)) || sides="b a"
    echo "compare: $suite, round $round of $rounds" >&2
    for side in $sides; do
      build=${!side}
      "$build/bench_$suite" --benchmark_min_time=0.05 --benchmark_out_format=json \
        --benchmark_out="$dir/$side/$suite-$round.json" "${flags[@]}" > "$dir/log" 2>&1 ||
        { echo "compare: $build/bench_$suite failed:"; tail -n 5 "$dir/log"; exit 2; }
    done
  done
done
"$lte" compare "$dir/a" "$dir/b"
