#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs what is missing, builds everything and runs every test: cmake/test.sh [options of ctest]
set -euo pipefail
cd "$(dirname "$0")/.."
cmake/setup.sh tests
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
cmake --preset dev
cmake --build --preset dev
ctest --preset dev -j "$CMAKE_BUILD_PARALLEL_LEVEL" "$@"
