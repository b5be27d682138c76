#!/usr/bin/env bash
# House rules that a machine can hold: format, include arrows, file sizes, shell scripts.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=0
say() { echo "check: $*"; failed=1; }

# Format: the version is pinned, because others lay out differently.
clang_format=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$clang_format" ]; then
  say "clang-format is missing (apt-get install clang-format-14)"
else
  while read -r f; do
    "$clang_format" --dry-run --Werror "$f" > /dev/null 2>&1 || say "$f: not formatted (make format)"
  done < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
fi

# Include arrows: a folder may include itself and what stands here. (core <- model <- methods <- bench <- app;
# data and io on core alone; the embedded generators are part of data.)
allowed() {
  case $1 in
    src/core) echo "core" ;;
    src/model) echo "core model" ;;
    src/methods) echo "core model methods" ;;
    src/data | datasets) echo "core data datasets" ;;
    src/io) echo "core io" ;;
    src/bench) echo "core model methods data io bench" ;;
    src/app | suites | tests | tests/fuzz) echo "core model methods data io bench app datasets tests" ;;
    cuda) echo "core cuda" ;;
    tests/simt) echo "core cuda tests" ;;
    *) echo "" ;;
  esac
}
while read -r f; do
  may=" $(allowed "$(dirname "$f")") "
  while read -r folder; do
    case $may in *" $folder "*) ;; *) say "$f: may not include $folder/" ;; esac
  done < <(sed -nE 's|^#include "([a-z]+)/.*|\1|p' "$f" | sort -u)
done < <(git ls-files 'src/*.h' 'src/*.cpp' 'cuda/*' 'suites/*.cpp' 'datasets/*.cpp' 'datasets/*.h' 'tests/*.cpp' 'tests/*.h')
git grep -nE '#include[^\n]*(cuda|cublas)' -- 'src/' && say "src/ includes a CUDA header"

# Sizes: 500 lines a file, 1 MiB a tracked file.
while read -r f; do
  lines=$(wc -l < "$f")
  [ "$lines" -le 500 ] || say "$f: $lines lines, 500 at most"
done < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' '*.sh')
while read -r f; do
  [ "$(wc -c < "$f")" -le 1048576 ] || say "$f: larger than 1 MiB"
done < <(git ls-files)

# What a list names must exist, and every source must be named: CMake globs nothing.
while read -r f; do
  grep -q -e "$f" -e "^add_suite($(basename "$f" .cpp))" CMakeLists.txt tests/simt/CMakeLists.txt || say "$f: not listed in CMakeLists.txt"
done < <(git ls-files 'src/*.cpp' 'datasets/*.cpp' 'suites/*.cpp' 'tests/*_test.cpp')

if command -v shellcheck > /dev/null; then
  git ls-files '*.sh' .ci/run | xargs shellcheck || say "shellcheck"
else
  echo "check: shellcheck is missing, scripts not checked (apt-get install shellcheck)"
fi
[ "$failed" -eq 0 ] && echo "check: ok"
exit "$failed"
