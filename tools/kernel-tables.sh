#!/usr/bin/env bash
# Makes kernels/RESOURCES.md and the tables of kernels/TRAFFIC.md again; needs NVRTC, no GPU. After any change to a kernel.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --release -q "$@" --example kernel_table > kernels/RESOURCES.md.new
mv kernels/RESOURCES.md.new kernels/RESOURCES.md
told="$(SAE_TEST_DEVICE=ptx cargo test --release -q "$@" --test kernels hardly_more -- --nocapture --test-threads 1)"
# Each table of the file is replaced by the one with the same header; what stands around them stays.
told="$told" awk '
    BEGIN {
        n = split(ENVIRON["told"], lines, "\n")
        for (i = 1; i <= n; i++) {
            if (lines[i] !~ /^\|/) { header = ""; continue }
            if (header == "") header = lines[i]
            tables[header] = tables[header] lines[i] "\n"
        }
    }
    /^\|/ {
        if (!inside) {
            if (!($0 in tables)) { print "no test prints this table: " $0 > "/dev/stderr"; exit 1 }
            printf "%s", tables[$0]
        }
        inside = 1
        next
    }
    { inside = 0; print }
' kernels/TRAFFIC.md > kernels/TRAFFIC.md.new
mv kernels/TRAFFIC.md.new kernels/TRAFFIC.md
