#!/usr/bin/env bash
# Makes sure that a C++ compiler is there, by apt where that is possible: the tests run the CUDA kernels through it.
set -euo pipefail

command -v "${CXX:-c++}" > /dev/null && exit 0
run=()
[ "$(id -u)" = 0 ] || run=(sudo)
if ! command -v apt-get > /dev/null || { [ "${#run[@]}" -gt 0 ] && ! command -v sudo > /dev/null; }; then
    echo "error: ${CXX:-c++} was not found, and the tests of the CUDA kernels need it: install g++ (Fedora: gcc-c++" \
        "libasan libubsan), or set CXX" >&2
    exit 1
fi
echo "installing g++"
"${run[@]}" apt-get update -qq
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ > /dev/null
