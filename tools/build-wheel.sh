#!/usr/bin/env bash
# Builds the wheel of the Python package with HDF5 inside, into the folder FIRST (wheels/), and checks it where there is no
# Rust, no HDF5 and no CUDA: in a new environment with nothing on PATH but that environment. Takes about ten minutes on two
# cores. Needs Rust, a C compiler and python3 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."
out="$(realpath -m "${1:-wheels}")"
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/build"
"$work/build/bin/pip" install -q 'maturin>=1.9,<2' 'cmake>=3.26'
(
    cd python
    # A folder of its own: the build script of HDF5 keeps its sources there.
    PATH="$work/build/bin:$PATH" CARGO_TARGET_DIR="$target/static-wheel" maturin build --release --out "$out"
)
wheel="$(ls -t "$out"/topk_sae-*.whl | head -n 1)"
bytes="$(stat -c %s "$wheel" 2> /dev/null || stat -f %z "$wheel")"
echo "$wheel: $bytes bytes"
[ "$bytes" -lt 25000000 ] || { echo "error: the wheel is larger than 25 MB" >&2; exit 1; }

python3 -m venv "$work/user"
"$work/user/bin/pip" install -q "$wheel"
data="$PWD/examples/data/prott5_uniprot_3ftx.h5"
cd "$work"
clean() { env -i PATH="$work/user/bin" HOME="$work" "$@"; }
clean sae --version
clean sae inspect "$data"
clean python - "$data" << 'PYTHON'
import sys

import numpy as np
import topk_sae

run = topk_sae.train(sys.argv[1], out="run", latents=256, k=8, steps=50)
codes = run.sae.encode(np.ones((4, 1024), np.float32))
print(run, codes.shape)
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1] for line in maps if ".so" in line}
assert not any("hdf5" in name or "cuda" in name for name in loaded), loaded
PYTHON
echo "ok: $wheel works without Rust, HDF5 and CUDA"
