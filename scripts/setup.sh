#!/usr/bin/env bash
# Checks the compiler and the libraries; installs the Debian packages that are missing where it may
# (root, or sudo without a password), otherwise prints the exact command and stops.
set -euo pipefail
packages=(cmake ninja-build git libeigen3-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libtomlplusplus-dev libbenchmark-dev libgtest-dev libdnnl-dev libhwy-dev libboost-context-dev curl unzip ca-certificates)
command -v "${CXX:-c++}" > /dev/null || packages=(g++ "${packages[@]}")

has() { dpkg-query -W -f='${Status}' "$1" 2> /dev/null | grep -q '^install ok installed$'; }

if ! command -v dpkg-query > /dev/null; then
  echo "setup: not a Debian system; CMake will say which of these is missing: ${packages[*]}"
else
  missing=()
  for p in "${packages[@]}"; do
    # A newer tool from elsewhere is as good as the package.
    case $p in
      cmake) command -v cmake > /dev/null && continue ;;
      ninja-build) command -v ninja > /dev/null && continue ;;
      git) command -v git > /dev/null && continue ;;
    esac
    has "$p" || missing+=("$p")
  done
  if ((${#missing[@]})); then
    run=""
    if [ "$(id -u)" -ne 0 ]; then
      if sudo -n true 2> /dev/null; then run="sudo"; else
        echo "setup: packages are missing; install them with"
        echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
        exit 1
      fi
    fi
    echo "setup: installing ${missing[*]}"
    $run apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
  fi
fi

version=$(cmake --version | sed -n '1s/[^0-9]*//p')
if [ "$(printf '%s\n3.25\n' "$version" | sort -V | head -n 1)" != "3.25" ]; then
  echo "setup: CMake $version is too old; 3.25 or newer is needed"
  exit 1
fi
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
printf '#include <span>\n#include <concepts>\nint main() { return []<class T>(T v) { return v; }(0); }\n' > "$probe/p.cpp"
if ! "${CXX:-c++}" -std=c++20 "$probe/p.cpp" -o "$probe/p" 2> "$probe/log"; then
  echo "setup: ${CXX:-c++} does not compile C++20; g++ 12 or clang 14 or newer is needed (apt-get install g++)"
  exit 1
fi
mkdir -p build
