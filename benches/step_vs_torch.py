"""Times one training step (forward, backward, Adam; batch resident) of eager PyTorch and of ours.

Both sides take turns in one run, with the same number of threads, so that a busy machine slows
both. The figures are medians over all rounds; the ratio's range is that of the rounds' ratios.

    cargo build --release --example step_time
    python benches/step_vs_torch.py --bin target/release/examples/step_time --out benches/runs/DATE-MACHINE
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import bench_common
import torch_model

# Middles of eight equal parts, so that their mean is that of the warm-up.
WARM_UP_T = [(2 * i + 1) / 16 for i in range(8)]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--bin", required=True, help="our side; called once a round and case")
    parser.add_argument("--out", required=True, help="folder for step_vs_torch.json and .md")
    parser.add_argument("--n", type=int, default=512, help="rows in a batch")
    parser.add_argument("--d", type=int, default=1024, help="inputs")
    parser.add_argument("--m", type=int, default=8192, help="latents")
    parser.add_argument("--k", type=int, default=32, help="active latents")
    parser.add_argument("--threads", type=int, default=2, help="for both sides")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's (the time does not depend on it)")
    parser.add_argument("--data", help="HDF5 file for the batch; otherwise normal rows with a mean offset")
    parser.add_argument("--weights", nargs="+", choices=["tied", "untied"], default=["tied", "untied"])
    parser.add_argument("--t", nargs="+", type=float, default=WARM_UP_T, help="warm-up fractions")
    parser.add_argument("--no-hard", action="store_true", help="leaves out the hard phase")
    parser.add_argument(
        "--pass-input",
        action="store_true",
        help="gives our side --input FILE.safetensors with this very x, w_enc, w_dec, b_pre, b_lat",
    )
    parser.add_argument(
        "--torch-denormals",
        action="store_true",
        help="PyTorch as it is by default; else denormal numbers count as zero there, which makes its last "
        "quarter of the warm-up about ten times as fast and is the harder comparison",
    )
    parser.add_argument("--torch-fused-adam", action="store_true", help="PyTorch's fused Adam, not its default")
    return parser.parse_args()


def batch(args):
    """Rows resident in memory: real ones, or standard normal around one common mean row."""
    if args.data:
        _, rows = bench_common.load_rows(args.data, limit=args.n)
        if rows.shape != (args.n, args.d):
            sys.exit(f"{args.data}: {rows.shape[0]} rows of {rows.shape[1]}; need --n {args.n} --d {args.d}")
        return torch.from_numpy(rows)
    return torch.randn(args.n, args.d) + torch.randn(args.d)


def time_torch(model, x, t, args):
    """Milliseconds of each timed step, after one that is not timed."""
    optimizer = torch_model.adam(model, args.lr, args.torch_fused_adam)
    times = []
    for step in range(args.steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model.loss(x, t).backward()
        optimizer.step()
        if step > 0:
            times.append((time.perf_counter() - began) * 1e3)
    return times


def time_ours(args, weights, t, input_file):
    phase = ["--hard"] if t >= 1.0 else ["--t", str(t)]
    sizes = ["--n", args.n, "--d", args.d, "--m", args.m, "--k", args.k]
    command = [args.bin, *map(str, sizes), f"--{weights}", *phase]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    if input_file:
        command += ["--input", input_file]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    # The result is the last line that is JSON; anything before it is chatter.
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)["ms"]
    sys.exit(f"`{' '.join(command)}` printed no JSON line")


def gemm_rate(x, m):
    """GFLOP/s of PyTorch's float32 product of the encoder's size."""
    weights = torch.randn(m, x.shape[1])
    torch.nn.functional.linear(x, weights)
    began = time.perf_counter()
    torch.nn.functional.linear(x, weights)
    return 2e-9 * x.shape[0] * x.shape[1] * m / (time.perf_counter() - began)


def save_input(model, x, folder):
    from safetensors.torch import save_file

    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    path = str(Path(folder) / f"input-{'tied' if model.w_dec is None else 'untied'}.safetensors")
    save_file({"x": x, **tensors}, path)
    return path


def measure(args, folder):
    """All times in milliseconds: [{"weights", "t", "torch": [[..] a round], "ours": [[..]]}], GEMM rates."""
    x = batch(args)
    phases = sorted(args.t) + ([] if args.no_hard else [1.0])
    cases = [{"weights": w, "t": t, "torch": [], "ours": []} for w in args.weights for t in phases]
    rates = []
    for round_number in range(args.rounds):
        rates.append(gemm_rate(x, args.m))
        for case in cases:
            # The same start every round: the time of a warm-up step depends on the scores.
            torch.manual_seed(0)
            model = torch_model.RelaxedTopK(args.d, args.m, args.k, tied=case["weights"] == "tied")
            input_file = save_input(model, x, folder) if args.pass_input else None
            sides = {
                "torch": lambda: time_torch(model, x, case["t"], args),
                "ours": lambda: time_ours(args, case["weights"], case["t"], input_file),
            }
            # Who goes first changes with the round.
            for side in sorted(sides, reverse=round_number % 2 == 0):
                case[side].append(sides[side]())
                # PyTorch's worker threads spin for a moment after their work.
                time.sleep(0.2)
            line = f"round {round_number + 1}/{args.rounds}  {case['weights']} t = {case['t']}:"
            times = [statistics.median(case[side][-1]) for side in ("torch", "ours")]
            print(f"{line} torch {times[0]:.1f} ms, ours {times[1]:.1f} ms", file=sys.stderr)
    return cases, rates


def summary(case):
    """Medians, the range of all times, and the ratio with its range over the rounds."""
    flat = {side: [ms for turn in case[side] for ms in turn] for side in ("torch", "ours")}
    middle = {side: statistics.median(times) for side, times in flat.items()}
    turns = zip(case["torch"], case["ours"])
    ratios = [statistics.median(a) / statistics.median(b) for a, b in turns]
    return {
        "weights": case["weights"],
        "phase": "hard" if case["t"] >= 1.0 else f"t = {case['t']}",
        **{side: {"median": middle[side], "min": min(t), "max": max(t)} for side, t in flat.items()},
        "ratio": middle["torch"] / middle["ours"],
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def warm_up_mean(cases, weights):
    """The headline of warm-up: the mean step over the measured t, of medians."""
    mine = [c for c in cases if c["weights"] == weights and c["t"] < 1.0]
    if not mine:
        return None
    joined = {"weights": weights, "t": -1.0}
    for side in ("torch", "ours"):
        rounds = zip(*(c[side] for c in mine))
        joined[side] = [[statistics.fmean(statistics.median(turn) for turn in turns)] for turns in rounds]
    return {**summary(joined), "phase": f"**warm-up, mean of {len(mine)} t**"}


def table(rows):
    def cell(times):
        return f"{times['median']:.1f} ({times['min']:.1f} to {times['max']:.1f})"

    header = ["weights", "phase", "PyTorch, ms a step", "ours, ms a step", "ratio"]
    body = [
        [r["weights"], r["phase"], cell(r["torch"]), cell(r["ours"])]
        + [f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"]
        for r in rows
    ]
    return bench_common.markdown_table(header, body)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(not args.torch_denormals)
    torch.manual_seed(0)
    info = bench_common.machine(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        cases, rates = measure(args, folder)
    rows = []
    for weights in args.weights:
        rows += [summary(c) for c in cases if c["weights"] == weights]
        rows += filter(None, [warm_up_mean(cases, weights)])
    sizes = f"N = {args.n}, D = {args.d}, M = {args.m}, k = {args.k}, float32"
    data = f"rows of {Path(args.data).name}" if args.data else "normal rows with a mean offset"
    text = "\n".join(
        [
            f"# A training step beside eager PyTorch: {sizes}\n",
            f"{bench_common.machine_line(info)}.\n",
            f"PyTorch trains on {data}"
            f"{'' if args.torch_denormals else ', denormal numbers as zero'}; {args.rounds} rounds of {args.steps} steps a side, in turns. "
            "Median (minimum to maximum). The ratio is PyTorch / ours, its range over the rounds. "
            f"PyTorch's float32 product of this size in the same run: {statistics.median(rates):.0f} GFLOP/s "
            f"({min(rates):.0f} to {max(rates):.0f}).\n",
            table(rows),
        ]
    )
    record = {"machine": info, "arguments": vars(args), "gemm_gflops": rates, "summary": rows, "raw_ms": cases}
    bench_common.write_results(args.out, "step_vs_torch", record, text)


if __name__ == "__main__":
    main()
