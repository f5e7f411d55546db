#!/usr/bin/env bash
# Checks that the pack for a GPU box works where the project is not: builds it, moves it to another folder, hides the
# project where the system allows that (as root), and runs tests of stage 1 there, on the emulation of the kernels.
#
#     tools/check-pack.sh [TEST...]       parts of names of tests; all of stage 1 without
set -euo pipefail
cd "$(dirname "$0")/.."
# What the stages may take by their limits, with the seconds that PEERS_SECONDS stands for, is what the whole may take.
python3 - << 'PYTHON'
import re, sys
text = open("tools/run-on-gpu.sh").read()
peers = int(re.search(r"PEERS_SECONDS:-(\d+)", text)[1])
limits = {}
for name, limit in re.findall(r"^each \d (\S+) (\d+|\$\(\(peers_seconds \+ \d+\)\)) ", text, re.M):
    limits[name] = int(limit) if limit.isdigit() else peers + int(re.search(r"\+ (\d+)", limit)[1])
whole = int(re.search(r"left=\$\(\((\d+) ", text)[1])
if len(limits) != text.count("\neach ") or sum(limits.values()) != whole or whole > 480:
    sys.exit(f"check-pack: the stages' limits {limits} add up to {sum(limits.values())} s, the whole ends after {whole} s")
PYTHON
PACK_HDF5=system tools/pack-gpu.sh
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
mv gpu-pack "$elsewhere/pack"
# The same places that the binaries were told when they were built: the project, and the build folder if it is apart.
hidden=("$PWD")
[ -z "${CARGO_TARGET_DIR:-}" ] || hidden+=("$(realpath -m "$CARGO_TARGET_DIR")")
run() {
    cd "$elsewhere/pack"
    EMULATION=1 STAGES=1 PARITY="$*" OUT="$elsewhere/report" ./run-on-gpu.sh
}
if unshare --mount true 2> /dev/null; then
    export -f run
    export elsewhere
    hide=$(printf 'mount -t tmpfs -o ro none %q; ' "${hidden[@]}")
    unshare --mount bash -euc "$hide"'run "$@"' check "$@" || status=$?
else
    echo "NOT HIDDEN: mounts are not allowed here, so the project can still be read from its own folder"
    (run "$@") || status=$?
fi
if [ "${status:-0}" -ne 0 ]; then
    tail -40 "$elsewhere/report/report.md"
    exit "$status"
fi
grep -q '^ok       parity' "$elsewhere/report/report.md"
