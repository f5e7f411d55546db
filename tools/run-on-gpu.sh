#!/usr/bin/env bash
# Runs the packed tests and benches on a GPU box (made by tools/pack-gpu.sh) and writes one report.
#
#     [OUT=DIR] [SPARSIFY=DIR] [OPENAI=DIR] [STAGES="1 2 3 4 5"] [PEERS_SECONDS=95] ./run-on-gpu.sh
#
# Stages: 1 parity on the card, 2 compute-sanitizer, 3 training beside the CPU, 4 benches, 5 other implementations.
# SPARSIFY holds that project's fused_encoder.py and xformers.py, OPENAI train.py and kernels.py.
# EMULATION=1 runs the tests of stage 1 on the CPU instead, through the emulation of the kernels (which needs g++): it
# checks the pack itself, without the limits. PARITY="NAME ..." picks tests of stage 1 by parts of their names.
# Kept under OUT (default ./gpu-report): report.md, the benches' JSON, raw.tar.gz with every log. A stage that fails or
# runs out of time does not stop the others; the whole ends within eight minutes.
# Exit status: 0 all stages passed, 1 one failed or ran out of time, 2 none failed, but one was not run.
set -u
here=$(cd "$(dirname "$0")" && pwd)
# Given paths count from where this was called.
out=$(realpath -m "${OUT:-$here/gpu-report}")
[ -z "${SPARSIFY:-}" ] || SPARSIFY=$(realpath -m "$SPARSIFY")
[ -z "${OPENAI:-}" ] || OPENAI=$(realpath -m "$OPENAI")
mkdir -p "$out" && cd "$here" || exit 1
stages=${STAGES:-1 2 3 4 5}
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
summary=$raw/summary.txt
: > "$summary"
began=$SECONDS

# NVRTC and cuBLAS come from a toolkit or from the wheels beside python3's torch; kernels are compiled once, here.
python=$(command -v python3 || true)
# `python3` may be a shim or a link from elsewhere: Python itself knows where its packages are.
if [ -n "$python" ] && [ -z "${VIRTUAL_ENV:-}" ]; then
    VIRTUAL_ENV=$("$python" -c 'import sys; print(sys.prefix)') && export VIRTUAL_ENV
fi
# The test binaries know the paths of the machine that built them.
export SAE_GOLDENS=$here/tests/goldens SAE_EXAMPLES=$here/examples/data SAE_TEST_TMP=$raw/tmp
export CRITERION_HOME=$raw/criterion SAE_CACHE=$raw/cache RUST_BACKTRACE=1 PYTHONUNBUFFERED=1

facts() {
    echo "commit: $(tr '\n' ' ' < commit)"
    echo "date: $(date -u '+%Y-%m-%d %H:%M UTC')"
    echo "kernel: $(uname -sr)"
    echo "processor: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) cores"
    local fields=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu
    command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=$fields --format=csv 2>&1 \
        || echo "nvidia-smi: not run: no GPU"
    echo "python: ${python:-none}"
    if [ -n "$python" ]; then
        "$python" -c 'import torch; print("torch:", torch.__version__, torch.version.cuda, torch.__file__)' 2>&1 |
            tail -1
        "$python" -c 'import triton; print("triton:", triton.__version__)' 2>&1 | tail -1
        for part in nvrtc cublas; do
            "$python" -c "
import glob, site
found = [f for s in site.getsitepackages() for f in glob.glob(s + '/nvidia/**/lib$part*.so*', recursive=True)]
print('$part in site-packages:', *(found or ['none']))" 2>&1 | tail -1
        done
    fi
    command -v compute-sanitizer nvcc
    ./bin/sae devices 2>&1
}

# stage NAME SECONDS COMMAND...: output to a log of that name; one line in the summary.
stage() {
    local name=$1 limit=$2 status
    shift 2
    local start=$SECONDS left=$((480 - (SECONDS - began)))
    # The limits are a card's. The emulation takes as long as the machine that checks the pack needs.
    if [ -n "${EMULATION:-}" ]; then limit=900; elif [ "$limit" -gt "$left" ]; then limit=$left; fi
    if [ "$limit" -lt 5 ]; then
        echo "NOT RUN  $name: no time left" >> "$summary"
        return
    fi
    timeout -k 5 "$limit" "$@" > "$raw/$name.log" 2>&1
    status=$?
    case $status in
        0) echo "ok       $name ($((SECONDS - start)) s)" ;;
        3) echo "NOT RUN  $name: $(tail -1 "$raw/$name.log")" ;;
        124 | 137) echo "TIME     $name: stopped after $limit s" ;;
        *) echo "FAILED   $name: status $status ($((SECONDS - start)) s)" ;;
    esac >> "$summary"
    tail -1 "$summary"
    keep
}

# After each stage, so that a run that is cut off leaves what it had.
keep() {
    cp "$raw"/*.json "$out" 2> /dev/null
    find "$raw" -maxdepth 1 -type f -printf '%f\n' | tar -czf "$out/raw.tar.gz" -C "$raw" -T - 2> /dev/null
    if [ -n "$python" ]; then
        "$python" gpu_report.py "$raw" > "$out/report.md" || cp "$summary" "$out/report.md"
    else
        cp "$summary" "$out/report.md"
    fi
}

wanted() { case " $stages " in *" $1 "*) true ;; *) false ;; esac }

not_run() { echo "NOT RUN  $1: no GPU" | tee -a "$summary"; }

facts > "$raw/facts.log" 2>&1
have_gpu=1
# The line that `sae` itself gives.
why=$(./bin/sae train examples/data/prott5_uniprot_3ftx.h5 --device cuda --dry-run --quiet 2>&1 > /dev/null) || have_gpu=0
if [ "$have_gpu" = 0 ]; then
    why=${why#error: --device cuda: }
    echo "no GPU: $(head -1 <<< "$why")" | tee -a "$summary"
fi

each() { # what belongs to a stage, or the line that says why not
    local number=$1 name=$2
    wanted "$number" || return 0
    shift
    if [ "$have_gpu" = 1 ] || { [ -n "${EMULATION:-}" ] && [ "$number" = 1 ]; }; then stage "$@"; else not_run "$name"; fi
}

sanitize() { # TOOL OPTIONS...; the tool's own exit status tells of errors that it found
    if ! command -v compute-sanitizer > /dev/null; then
        echo "compute-sanitizer is not on the PATH"
        return 3
    fi
    SAE_TEST_DEVICE=cuda compute-sanitizer --tool "$@" --error-exitcode 9 --print-limit 20 \
        ./bin/kernels --exact engine::a_small_step_of_each_kind_agrees --test-threads 1 --nocapture
}
export -f sanitize

# The limits add up to 480 seconds: each stage has its turn, whatever the others do.
# The first compiles the kernels, for all that follow.
on=(env)
[ -n "${EMULATION:-}" ] || on=(env SAE_REQUIRE_GPU=1 SAE_TEST_DEVICE=cuda)
first=(./bin/kernels --exact engine::a_small_step_of_each_kind_agrees --test-threads 1 --nocapture)
each 1 first-step 30 "${on[@]}" "${first[@]}"
# The headline: a lease that ends early leaves it.
each 4 steps 75 env SAE_BENCH_PARTS="ceilings steps" SAE_BENCH_OUT="$raw/cuda_step.json" ./bin/cuda_step --bench
# Tests of one thread share the cards that it has opened: a few threads open few. shellcheck disable=SC2206
parity=(./bin/kernels --skip the_same_holds_ --skip controls:: --nocapture ${PARITY:-})
[ -n "${EMULATION:-}" ] || parity+=(--test-threads 4)
each 1 parity 40 "${on[@]}" "${parity[@]}"
each 1 goldens 10 "${on[@]}" ./bin/goldens --nocapture
data=examples/data/prott5_uniprot_3ftx.h5
each 3 train 70 "${python:-python3}" gpu_train.py --sae bin/sae --data $data --out "$raw/train"
[ ! -f "$raw/train/gpu_train.json" ] || cp "$raw/train/gpu_train.json" "$raw/"
# Errors of calls inside cuBLAS, which it handles itself, are not ours.
each 2 memcheck 20 bash -c 'sanitize memcheck --report-api-errors no'
each 2 racecheck 30 bash -c 'sanitize racecheck'
peers_seconds=${PEERS_SECONDS:-95}
peers=(--bin bin/step_time --out "$raw" --seconds "$peers_seconds")
[ -z "${SPARSIFY:-}" ] || peers+=(--sparsify "$SPARSIFY")
[ -z "${OPENAI:-}" ] || peers+=(--openai "$OPENAI")
each 5 peers $((peers_seconds + 40)) "${python:-python3}" benches/gpu_vs_peers.py "${peers[@]}"
each 4 profiles 70 env SAE_BENCH_PARTS="ceilings profiles selections" SAE_BENCH_OUT="$raw/cuda_profiles.json" \
    ./bin/cuda_step --bench

keep
echo
echo "== summary ($((SECONDS - began)) s)"
grep -E '^(NVIDIA|Tesla|name,)|^processor' "$raw/facts.log"
cat "$summary"
grep -hE '^test result|^NOT HERE|^FAIL ' "$raw"/parity.log "$raw"/goldens.log "$raw"/train.log 2> /dev/null
grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$raw"/*check.log 2> /dev/null
[ ! -f "$raw/gpu_vs_peers.md" ] || sed -n '/^## /,$p' "$raw/gpu_vs_peers.md"
echo "report: $out/report.md"
! grep -qE '^(FAILED|TIME)' "$summary" || exit 1
! grep -q '^NOT RUN' "$summary" || exit 2
