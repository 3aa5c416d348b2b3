#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs the Debian packages of each set named, those that are missing: cmake/setup.sh job|tests|oracle|bench ...
# Works as root and as a user with sudo. On other systems it names what to install.
set -euo pipefail

words=(wamerican wfrench wngerman wspanish witalian wdutch wdanish wswedish wportuguese wcatalan)
job=(g++ cmake ninja-build libeigen3-dev libcli11-dev nlohmann-json3-dev "${words[@]}")
tests=("${job[@]}" catch2 libbenchmark-dev pkg-config
       clang clang-format libclang-rt-dev libomp-dev strace)
oracle=(python3-torch)
bench=(g++ cmake ninja-build libeigen3-dev libcli11-dev nlohmann-json3-dev libbenchmark-dev
       libtorch-dev libdnnl-dev libopenblas0-pthread)

missing=()
for set in "$@"; do
  declare -n packages=$set
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
  done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "moxie: no apt-get here; please install what Debian calls ${missing[*]}" >&2
  exit 1
fi
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
echo "Installing ${missing[*]}"
"${apt[@]}" update </dev/null
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
