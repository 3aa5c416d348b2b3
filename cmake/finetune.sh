#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The main job: installs what is missing, builds examples/finetune for this machine and runs it with the options given.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/cmake/setup.sh" job
cmake -S "$root" --preset native
cmake --build "$root/build/native" --target finetune
exec "$root/build/native/examples/finetune" "$@"
