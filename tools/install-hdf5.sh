#!/usr/bin/env bash
# Makes sure that the HDF5 library and its headers are there, by apt where that is possible.
set -euo pipefail

have_hdf5() {
    [ -n "${HDF5_DIR:-}" ] || { command -v pkg-config > /dev/null && pkg-config --exists hdf5; } || command -v h5cc > /dev/null
}

have_hdf5 && exit 0
if ! command -v apt-get > /dev/null; then
    echo "error: libhdf5 was not found; install it with its headers (Fedora: hdf5-devel, macOS: brew install hdf5)," \
        "or build with \`cargo build --release --features static\` (needs CMake 3.26 or newer)" >&2
    exit 1
fi
run=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo > /dev/null; then
        echo "error: libhdf5 is missing and neither root nor sudo is at hand; ask for the package libhdf5-dev," \
            "or build with \`cargo build --release --features static\` (needs CMake 3.26 or newer)" >&2
        exit 1
    fi
    run=(sudo)
fi
echo "installing libhdf5-dev and pkg-config"
"${run[@]}" apt-get update -qq
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libhdf5-dev pkg-config > /dev/null
