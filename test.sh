#!/usr/bin/env bash
# All tests, in the profile that people run.
set -euo pipefail
cd "$(dirname "$0")"
./tools/install-hdf5.sh
./tools/install-cxx.sh
cargo test --release --workspace "$@"
