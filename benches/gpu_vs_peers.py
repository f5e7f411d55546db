"""A training step on a GPU beside other implementations, in turns within one run.

    python benches/gpu_vs_peers.py --bin step_time --out DIR [--sparsify DIR] [--openai DIR]

Peers: the literal model in eager PyTorch (float32 as by default, and TF32) and under torch.compile with bfloat16
autocast; with --sparsify DIR the kernels of EleutherAI/sparsify (DIR holds fused_encoder.py and xformers.py), with
--openai DIR the FastAutoencoder of openai/sparse_autoencoder (DIR holds train.py and kernels.py). Nothing of theirs
is copied. `--device cpu --smoke` runs the logic at tiny sizes without a GPU.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import torch

import bench_common
import torch_model

SIZES = {"large": (4096, 1024, 16384, 64), "small": (512, 1024, 8192, 32)}
OURS = ["f32", "tf32", "bf16"]
# What performance.md asks for at the large size: ratio of a peer's time to that of ours in bfloat16.
AIMS = {
    ("hard", "eager f32"): 15,
    ("hard", "eager TF32"): 6,
    ("hard", "compile bf16"): 4,
    ("hard", "sparsify"): 3,
    ("warm-up", "eager TF32"): 5,
    ("warm-up", "compile bf16"): 3,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", help="our examples/step_time; without it our side is not measured")
    parser.add_argument("--out", required=True, help="folder for gpu_vs_peers.json and .md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sparsify", help="folder with fused_encoder.py and xformers.py")
    parser.add_argument("--openai", help="folder with train.py and kernels.py")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn, queued and then waited for")
    parser.add_argument("--t", type=float, default=0.5, help="fraction of the warm-up that stands for it")
    parser.add_argument("--weights", nargs="+", choices=["tied", "untied"], default=["tied"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--no-compile", action="store_true", help="leaves torch.compile out")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new case after so many seconds")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the script, measures nothing")
    return parser.parse_args()


class Clock:
    """Milliseconds of queued work, by events of the device where it is a GPU."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def time(self, work, repeats):
        """Milliseconds of one `work()`, the mean of `repeats` queued one after another."""
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            return (time.perf_counter() - began) * 1e3 / repeats
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / repeats


# ------------------------------------------------------------------------------------ peers


class Sparsify(torch.nn.Module):
    """The hard phase, untied, from sparsify's kernels: dense encoder and torch.topk, sparse decoder."""

    def __init__(self, folder, d, m, k):
        super().__init__()
        self.encode = load(folder, "fused_encoder").fused_encoder
        self.decode = load(folder, "xformers").xformers_embedding_bag
        self.k = k
        reference = torch_model.RelaxedTopK(d, m, k, tied=False)
        self.w_enc, self.w_dec = reference.w_enc, reference.w_dec
        self.b_lat, self.b_pre = reference.b_lat, reference.b_pre

    def loss(self, x, t):
        mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        # As sparsify's own forward pass: under bfloat16 autocast.
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            inner = (x - mu) / (std + torch_model.EPS_STD) - self.b_pre
            top = self.encode(inner, self.w_enc, self.b_lat, self.k, "topk")
            y = self.decode(top.top_indices, self.w_dec, top.top_acts.to(self.w_dec.dtype)) + self.b_pre
        return ((y * std + mu - x) ** 2).mean()


class OpenAI(torch.nn.Module):
    """The hard phase, untied, by OpenAI's FastAutoencoder, under autocast as in its training loop."""

    def __init__(self, folder, d, m, k):
        super().__init__()
        # Its train.py logs to wandb, which is not needed, and its package loads models from the network.
        sys.modules.setdefault("wandb", types.ModuleType("wandb"))
        package = types.ModuleType("sparse_autoencoder")
        package.__path__ = [str(folder)]
        sys.modules["sparse_autoencoder"] = package
        train = importlib.import_module("sparse_autoencoder.train")
        # On one device its own function asks a group of devices that is not there for its size.
        train.sharded_topk = lambda x, k, sh_comm, capacity_factor=None: torch.topk(x, k, dim=-1)[::-1]
        self.model = train.FastAutoencoder(m, d, k, auxk=None, dead_steps_threshold=10**9)

    def loss(self, x, t):
        mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        inner = (x - mu) / (std + torch_model.EPS_STD)
        with torch.autocast(x.device.type, dtype=torch.float16):
            recon = self.model(inner)[0]
        return ((recon.float() * std + mu - x) ** 2).mean()


def load(folder, name):
    """A module by its file."""
    path = Path(folder) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    module = importlib.util.module_from_spec(spec)
    # Its classes look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Side:
    """One implementation, ready to be timed: model, optimizer, arithmetic."""

    def __init__(self, model, x, t, device, tf32=False, compiled=False):
        self.x, self.tf32, self.device = x, tf32, device
        self.model = model.to(device)
        self.optimizer = torch_model.adam(self.model, 1e-4)
        self.loss = lambda: self.model.loss(self.x, t)
        if compiled:
            inner = torch.compile(lambda x: self.model.loss(x, t))

            def loss():
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    return inner(self.x)

            self.loss = loss

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def time(self, clock, steps):
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        return clock.time(self.step, steps)


def sides(args, size, weights, t, x, device):
    """Peers of a case: name, and a function that makes it or a text why there is none."""
    _, d, m, k = size

    def literal():
        torch.manual_seed(0)
        return torch_model.RelaxedTopK(d, m, k, tied=weights == "tied")

    peers = {
        "eager f32": lambda: Side(literal(), x, t, device),
        "eager TF32": lambda: Side(literal(), x, t, device, tf32=True),
        "compile bf16": lambda: Side(literal(), x, t, device, tf32=True, compiled=True),
    }
    if args.no_compile:
        peers["compile bf16"] = "not measured: --no-compile"
    if t >= 1.0:
        for name, folder, kind in [("sparsify", args.sparsify, Sparsify), ("openai", args.openai, OpenAI)]:
            peers[name] = "not measured: no path given"
            if folder:
                peers[name] = lambda make=kind, at=folder: Side(make(at, d, m, k), x, t, device, tf32=True)
    return peers


class Ours:
    """Our side: one process for a precision of a case, which times a turn for each line that it is sent."""

    def __init__(self, args, size, weights, t, precision):
        n, d, m, k = map(str, size)
        device = "cuda:0" if args.device == "cuda" else args.device
        command = [args.bin, "--n", n, "--d", d, "--m", m, "--k", k, f"--{weights}", "--device", device]
        command += ["--hard"] if t >= 1.0 else ["--t", str(t)]
        command += ["--precision", precision, "--steps", str(max(args.steps, 20)), "--repeats", "3", "--turns"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.communicate()[1].strip()[-300:])
        return json.loads(line)

    def time(self, clock, steps):
        """Milliseconds a step: the median of a turn's repeats, after half a second that does not count."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return statistics.median(self.answer()["ms"])

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------ measuring


def measure(args, size, weights, t, device):
    """One case: {side: {"ms": [..]} or {"why": text}}, all sides in turns."""
    n, d, m, k = size
    torch.manual_seed(0)
    x = torch.randn(n, d, device=device) + torch.randn(d, device=device)
    clock, made, found = Clock(device), {}, {}
    makers = sides(args, size, weights, t, x, device)
    for precision in OURS if device.type == "cuda" else ["f32"]:
        make = lambda precision=precision: Ours(args, size, weights, t, precision)
        makers[f"ours {precision}"] = make if args.bin else "not measured: no --bin given"
    for name, make in makers.items():
        if isinstance(make, str):
            found[name] = {"why": make}
            continue
        try:
            made[name] = make()
            # The first is where code is generated.
            began = time.perf_counter()
            made[name].time(clock, 3)
            found[name] = {"ms": [], "first_three_s": time.perf_counter() - began}
        except Exception as error:  # a peer that does not run here is told, and the others go on
            made.pop(name, None)
            found[name] = {"why": f"failed: {type(error).__name__}: {str(error)[:300]}"}
    for round_number in range(args.rounds):
        for name in made if round_number % 2 == 0 else reversed(made):
            # Half a second that does not count: the clock of a GPU falls while it has nothing to do.
            if device.type == "cuda" and not isinstance(made[name], Ours):
                until = time.perf_counter() + 0.5
                while time.perf_counter() < until:
                    made[name].time(clock, args.steps)
            found[name]["ms"].append(made[name].time(clock, args.steps))
    for side in made.values():
        if isinstance(side, Ours):
            side.close()
    del made
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def ceilings(device, smoke):
    """Bytes and operations a second that this card reaches: copies of much and of little memory, and products."""
    clock = Clock(device)
    cuda = device.type == "cuda"
    side, large, small = (256, 1 << 16, 1 << 12) if smoke or not cuda else (8192, 1 << 30, 4 << 20)

    def copy(count):
        a = torch.randn(count // 4, device=device).repeat(4)[:count]
        b = torch.empty_like(a)
        rounds = 10 if count == large else 200

        def work():
            for _ in range(rounds):
                b.copy_(a)

        if cuda:
            work()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            run = graph.replay
        else:
            run = work
        clock.time(run, 1)
        return 8 * count * rounds / statistics.median(clock.time(run, 1) for _ in range(5)) * 1e3

    def product(dtype, tf32):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        clock.time(lambda: a @ b, 3)
        return 2 * side**3 / statistics.median(clock.time(lambda: a @ b, 3) for _ in range(5)) * 1e3

    return {
        "copy_bytes_per_second": copy(large),
        "copy_in_cache_bytes_per_second": copy(small),
        "f32_flops": product(torch.float32, False),
        "tf32_flops": product(torch.float32, True),
        "bf16_flops": product(torch.bfloat16, False),
    }


def floor_ms(size, c):
    """The floor of the hard phase, tied, bfloat16, part by part, from the ceilings of this card."""
    n, d, m, k = size
    memory, cache = c["copy_bytes_per_second"], c["copy_in_cache_bytes_per_second"]
    parts = {
        "encoder product": 2 * n * d * m / c["bf16_flops"],
        "scores written and read once": 2 * 2 * n * m / memory,
        "decode and dh: rows of W gathered twice, from L2": 2 * 2 * n * k * d / cache,
        "dW: rows of dy' and x' gathered, from L2": 2 * 2 * n * k * d / cache,
        "Adam: 26 bytes a parameter": 26 * m * d / memory,
    }
    return {name: seconds * 1e3 for name, seconds in parts.items()}


# ------------------------------------------------------------------------------------ the report


def middle(entry):
    return statistics.median(entry["ms"]) if entry.get("ms") else None


def case_rows(case):
    """Lines of the table of one case: side, ms, ratios to ours, aim."""
    best = middle(case["sides"].get("ours bf16", {}))
    single = middle(case["sides"].get("ours f32", {}))
    rows = []
    for name, entry in case["sides"].items():
        ms = middle(entry)
        aim = AIMS.get((case["phase"], name)) if case["size"] == "large" else None
        if ms is None:
            rows.append([name, entry.get("why", "not measured"), "", "", aim or ""])
            continue
        spread = f"{ms:.3f} ({min(entry['ms']):.3f} to {max(entry['ms']):.3f})"
        ratio = lambda ours: f"{ms / ours:.2f}" if ours else "not measured"
        rows.append([name, spread, ratio(best), ratio(single), aim or ""])
    return rows


def report(record):
    info = record["machine"]
    lines = [f"# A training step on {record['device']} beside others\n", f"{bench_common.machine_line(info)}.\n"]
    if record["smoke"]:
        lines.append("**Smoke run at tiny sizes: nothing here is a measurement.**\n")
    c = record["ceilings"]
    lines.append(
        f"Ceilings in this run: copy {c['copy_bytes_per_second'] / 1e12:.2f} TB/s, copy in cache "
        f"{c['copy_in_cache_bytes_per_second'] / 1e12:.2f} TB/s, product f32 {c['f32_flops'] / 1e12:.0f}, TF32 "
        f"{c['tf32_flops'] / 1e12:.0f}, bf16 {c['bf16_flops'] / 1e12:.0f} TFLOP/s.\n"
    )
    for case in record["cases"]:
        size = dict(zip("NDMk", case["sizes"]))
        title = ", ".join(f"{name} = {value}" for name, value in size.items())
        lines.append(f"\n## {title}, {case['weights']}, {case['phase']}\n")
        if case["phase"] == "hard" and case["weights"] == "tied":
            lines.append("sparsify and openai have no tied model: theirs is untied.\n")
        if "why" in case:
            lines.append(case["why"])
            continue
        header = ["side", "ms a step (min to max)", "ratio to ours bf16", "ratio to ours f32", "aim (to bf16)"]
        lines.append(bench_common.markdown_table(header, case_rows(case)))
        ours = middle(case["sides"].get("ours bf16", {}))
        if case["phase"] == "hard" and "floor_ms" in case:
            total = sum(case["floor_ms"].values())
            over = f"{ours / total:.2f} times it (aim 1.5)" if ours else "not measured"
            parts = "; ".join(f"{name} {ms:.3f}" for name, ms in case["floor_ms"].items())
            lines.append(f"\nFloor with this card's ceilings {total:.3f} ms; ours in bf16: {over}. Parts: {parts}.")
    return "\n".join(lines)


def main():
    args = arguments()
    began = time.perf_counter()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_vs_peers: not run: no GPU (torch.cuda.is_available() is false)")
        return
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    record = {
        "device": name,
        "smoke": args.smoke,
        "arguments": vars(args).copy(),
        "machine": bench_common.machine(torch.get_num_threads()),
        "ceilings": ceilings(device, args.smoke),
        "cases": [],
    }
    for size_name in args.sizes:
        size = (32, 64, 256, 8) if args.smoke else SIZES[size_name]
        for weights in args.weights:
            for phase, t in [("hard", 1.0), ("warm-up", args.t)]:
                case = {"size": size_name, "sizes": size, "weights": weights, "phase": phase, "t": t}
                if time.perf_counter() - began > args.seconds:
                    case["why"] = f"not measured: the {args.seconds:.0f} seconds of this run were over"
                else:
                    case["sides"] = measure(args, size, weights, t, device)
                    case["floor_ms"] = floor_ms(size, record["ceilings"])
                record["cases"].append(case)
                # After each case: a run that is stopped leaves what it had.
                with contextlib.redirect_stdout(io.StringIO()):
                    write(args.out, record)
    write(args.out, record)


def write(folder, record):
    # A copy: file names in it are shortened.
    bench_common.write_results(folder, "gpu_vs_peers", json.loads(json.dumps(record)), report(record))


if __name__ == "__main__":
    main()
