#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The main job: installs what is missing, builds examples/finetune for this machine and runs it with the options given.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/cmake/setup.sh" job
cmake -S "$root" --preset native
cmake --build "$root/build/native" --target finetune
# Waiting threads spin but briefly: on a busy machine a spinning one costs its partner whole time slices.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
exec "$root/build/native/examples/finetune" "$@"
