#!/usr/bin/env bash
# Installs what is missing, builds `sae`, and trains a small top-k autoencoder on the sample proteins.
# Needs Rust, git and a C compiler; on Debian and Ubuntu it installs libhdf5 itself.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v cargo > /dev/null; then
    echo "error: cargo was not found; install Rust from https://rustup.rs or your distribution, then run this again" >&2
    exit 1
fi

./tools/install-hdf5.sh
cargo build --release
sae="${CARGO_TARGET_DIR:-target}/release/sae"

"$sae" train examples/data/prott5_uniprot_3ftx.h5 --out runs/quickstart --overwrite \
    --latents 512 --k 16 --steps 600 --batch-size 128 "$@"
echo "look at runs/quickstart/relaxed_topk_sae_mse.png; on your data: $sae train YOUR_FILE.h5"
