#!/usr/bin/env bash
# Builds what a GPU box without Rust needs into gpu-pack/: release binaries with HDF5 in them, tests, benches, data.
# Needs CMake 3.26 or newer, or python3 with pip to fetch it. Copy the folder there and run gpu-pack/run-on-gpu.sh.
# PACK_HDF5=system leaves HDF5 out, which needs libhdf5 there: to check a pack on the machine that made it
# (tools/check-pack.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
pack=gpu-pack

cmake_is_new() {
    local version
    version=$(cmake --version 2> /dev/null | sed -n 's/^cmake version //p') || return 1
    [ "$(printf '%s\n3.26\n' "$version" | sort -V | head -1)" = 3.26 ]
}
static=(--features static)
if [ "${PACK_HDF5:-static}" = system ]; then
    static=()
elif ! cmake_is_new; then
    [ -x "$target/cmake-venv/bin/cmake" ] || {
        python3 -m venv "$target/cmake-venv"
        "$target/cmake-venv/bin/pip" install -q 'cmake>=3.26'
    }
    PATH="$(realpath "$target/cmake-venv/bin"):$PATH"
    cmake_is_new || { echo "pack-gpu: CMake 3.26 or newer is needed to build HDF5" >&2; exit 1; }
fi

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/examples" "$pack/tests"
# One line of JSON for each binary says where it lies.
cargo build --release "${static[@]}" --bin sae --example step_time --test kernels --test goldens \
    --bench cuda_step --message-format=json-render-diagnostics > "$pack/built.json"
python3 - "$pack" << 'PYTHON'
import json, shutil, sys
pack = sys.argv[1]
wanted = {"sae", "step_time", "kernels", "goldens", "cuda_step"}
for line in open(f"{pack}/built.json"):
    message = json.loads(line)
    name = message.get("target", {}).get("name")
    if message.get("executable") and name in wanted:
        shutil.copy2(message["executable"], f"{pack}/bin/{name}")
        wanted.discard(name)
if wanted:
    sys.exit(f"pack-gpu: not built: {', '.join(sorted(wanted))}")
PYTHON
rm "$pack/built.json"
strip "$pack"/bin/*
cp -r tests/goldens "$pack/tests/"
cp -r examples/data "$pack/examples/"
mkdir "$pack/benches"
cp benches/*.py "$pack/benches/"
cp tools/run-on-gpu.sh tools/gpu_train.py tools/gpu_report.py "$pack/"
git rev-parse HEAD > "$pack/commit"
[ -z "$(git status --porcelain)" ] || echo "with changes" >> "$pack/commit"

for binary in "$pack"/bin/*; do
    # What the box must bring: nothing but the C library.
    if [ ${#static[@]} -gt 0 ] && ldd "$binary" | grep -q hdf5; then
        echo "pack-gpu: $binary still needs libhdf5" >&2
        exit 1
    fi
done
glibc=$(objdump -T "$pack"/bin/* | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
size=$(du -sm "$pack" | cut -f1)
echo "$pack: $size MiB, needs ${glibc/_/ } or newer"
[ "$size" -lt 60 ] || { echo "pack-gpu: more than 60 MiB" >&2; exit 1; }
