#!/usr/bin/env bash
# Fetches every file of manifest.toml into a folder: from $LTE_DATA_MIRROR if it is there, else from its
# official address. Checks size and checksum; a file that is there and right is left alone. Of several
# candidates for one split one suffices. Exit status: 1 if a split has no file in the end.
#   usage: datasets/fetch.sh [DEST [DATASET]]        DEST is data unless given; DATASET: only that one
set -u

dest=${1:-data}
only=${2:-}
manifest=$(dirname "$0")/manifest.toml
mirror=${LTE_DATA_MIRROR:-}
failures=0
got=" "     # the splits that have a file
failed=" "  # the splits of which a candidate failed

# What is wrong with file $1, or nothing.
fault() {
  local size sum
  size=$(($(wc -c <"$1")))
  if [ "$size" -ne "$bytes" ]; then
    echo "has $size bytes, not $bytes"
    return
  fi
  if [ -n "$sha256" ]; then
    sum=$(sha256sum <"$1" | cut -d' ' -f1)
    [ "$sum" = "$sha256" ] || echo "has the sha256 $sum, not $sha256"
  else
    sum=$({ printf 'blob %d\0' "$size" && cat "$1"; } | sha1sum | cut -d' ' -f1)
    [ "$sum" = "$git_blob" ] || echo "has the git blob id $sum, not $git_blob"
  fi
}

download() {  # $1: address, $2: file
  if command -v curl >/dev/null; then
    curl --fail --silent --show-error --location --retry 2 --connect-timeout 20 -o "$2" "$1"
  elif command -v wget >/dev/null; then
    wget --quiet --timeout=20 --tries=3 -O "$2" "$1"
  else
    echo "neither curl nor wget is installed" >&2
    return 1
  fi
}

# Puts the row's file into $1 and says on standard output where it came from.
obtain() {
  if [ -n "$mirror" ] && [ -f "$mirror/$path" ]; then
    cp "$mirror/$path" "$1" && chmod u+w "$1" && echo "copied from the mirror"
  elif [ -z "$url" ]; then
    echo "not in the mirror, and without an address"
    return 1
  elif [ -n "$member" ]; then
    download "$url" "$1.zip" && unzip -p "$1.zip" "$member" >"$1" && echo "downloaded"
    local status=$?
    rm -f "$1.zip"
    return $status
  else
    download "$url" "$1" && echo "downloaded"
  fi
}

# One row: its keys are in the variables below.
fetch_row() {
  local key="$dataset/$split" target="$dest/$path" from wrong
  [ -z "$only" ] || [ "$dataset" = "$only" ] || return 0
  case $got in *" $key "*) return ;; esac
  if [ -f "$target" ] && [ -z "$(fault "$target")" ]; then
    echo "$path: is there"
    got="$got$key "
    return
  fi
  mkdir -p "$(dirname "$target")" || exit 1
  if from=$(obtain "$target.tmp" 2>&1); then
    wrong=$(fault "$target.tmp")
    if [ -z "$wrong" ] && mv -f "$target.tmp" "$target"; then
      echo "$path: $from"
      got="$got$key "
      return
    fi
    from="$from, but ${wrong:-it cannot be moved into place}"
  fi
  rm -f "$target.tmp"
  echo "$path: not fetched: $(tail -n 1 <<<"${from:-no reason given}")"
  failed="$failed$key "
}

clear_row() { dataset='' split='' path='' url='' member='' bytes=0 sha256='' git_blob=''; }

clear_row
while IFS= read -r line || [ -n "$line" ]; do
  if [ "$line" = "[[file]]" ]; then
    [ -n "$path" ] && fetch_row
    clear_row
    continue
  fi
  case $line in '#'* | '') continue ;; esac
  value=${line#*= }
  value=${value#\"}
  value=${value%\"}
  case ${line%% =*} in
    dataset) dataset=$value ;;
    split) split=$value ;;
    path) path=$value ;;
    url) url=$value ;;
    member) member=$value ;;
    bytes) bytes=$value ;;
    sha256) sha256=$value ;;
    git_blob) git_blob=$value ;;
    licence | note) ;;
    *) echo "$manifest: unknown line: $line" >&2 && exit 1 ;;
  esac
done <"$manifest"
[ -n "$path" ] && fetch_row

if [ "$got$failed" = "  " ]; then
  echo "$manifest has no dataset $only" >&2
  exit 1
fi
for key in $failed; do
  case $got in *" $key "*) ;; *) failures=$((failures + 1)) && echo "$key: has no file" ;; esac
done
[ "$failures" -eq 0 ]
