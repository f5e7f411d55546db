"""Training on a GPU beside training on the CPU: the same run, the same bits again, and after a kill.

    python3 gpu_train.py --sae SAE --data FILE.h5 --out DIR [--device cuda]

200 steps: the loss curve in float32 within 1e-3 of the CPU's, final validation FVU within 1 % in every precision;
two runs give the same bits, and so does one that was killed and resumed. Needs Python alone.
"""

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PRECISIONS = ["f32", "tf32", "bf16"]
# Curves of float32 differ by the order of sums; what rounding does to the choice of latents is less than this.
CURVE, FVU = 1e-3, 0.01


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", required=True, help="the program")
    parser.add_argument("--data", required=True, help="embeddings in HDF5")
    parser.add_argument("--out", required=True, help="folder for the runs and gpu_train.json")
    parser.add_argument("--device", default="cuda", help="cpu checks this script itself")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--latents", type=int, default=2048)
    return parser.parse_args()


class Runs:
    def __init__(self, args):
        self.args, self.checks, self.seconds = args, [], {}

    def command(self, name, device, precision, preset):
        a = self.args
        sizes = ["--latents", a.latents, "--k", 32, "--steps", a.steps, "--batch-size", 128, "--seed", 7]
        marks = ["--eval-every", 5, "--checkpoint-every", 20]
        command = [a.sae, "train", a.data, "--out", Path(a.out) / name, "--device", device, "--quiet", "--json"]
        return list(map(str, command + ["--precision", precision, "--preset", preset] + sizes + marks))

    def train(self, name, device, precision, preset):
        """The folder of a finished run."""
        folder = Path(self.args.out) / name
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        run(self.command(name, device, precision, preset))
        self.seconds[name] = time.perf_counter() - began
        return folder

    def check(self, what, good, figure):
        self.checks.append({"check": what, "ok": bool(good), "figure": figure})
        print(f"{'ok' if good else 'FAIL':4}  {what}: {figure}", flush=True)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} ...: {done.stderr.strip()[-500:]}")


def metrics(folder):
    """metrics.csv, without the column that a clock decides."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "rows_per_second"} for row in csv.DictReader(file)]


def curve(folder):
    return [float(row["train_loss"]) for row in metrics(folder) if row["train_loss"]]


def fvu(folder):
    return json.loads((folder / "summary.json").read_text())["val"]["fvu"]


def tensors(path):
    """Names, shapes and bytes of a safetensors file: its metadata tell the time."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: (t["dtype"], t["shape"], content[start + t["data_offsets"][0] : start + t["data_offsets"][1]])
        for name, t in header.items()
    }


def same_bits(a, b):
    """Where two finished runs differ; empty where they do not."""
    differ = [] if metrics(a) == metrics(b) else ["metrics.csv"]
    names = sorted(p.relative_to(a) for p in a.glob("**/*.safetensors"))
    if names != sorted(p.relative_to(b) for p in b.glob("**/*.safetensors")):
        return differ + ["names of checkpoints"]
    return differ + [str(n) for n in names if tensors(a / n) != tensors(b / n)]


def kill_and_resume(runs, precision, preset):
    """A run killed with signal 9 in the middle, and taken up again."""
    a = runs.args
    folder = Path(a.out) / f"killed-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    process = subprocess.Popen(
        runs.command(folder.name, a.device, precision, preset), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list(folder.glob("checkpoints/step-*.safetensors")):
        time.sleep(0.002)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    run([a.sae, "train", "--resume", str(folder), "--device", a.device, "--quiet"])
    return folder, killed


def compare(runs):
    device = runs.args.device
    for preset in ["data-topk", "relaxed-topk", "topk", "sparse-l1"]:
        cpu = runs.train(f"cpu-{preset}", "cpu", "f32", preset)
        want, want_fvu = curve(cpu), fvu(cpu)
        for precision in PRECISIONS if device != "cpu" else ["f32"]:
            gpu = runs.train(f"gpu-{preset}-{precision}", device, precision, preset)
            got = curve(gpu)
            if precision == "f32":
                worst = max((abs(g / w - 1) for g, w in zip(got, want)), default=float("nan"))
                good = len(got) == len(want) and worst <= CURVE
                what = f"{preset}: loss curve beside the CPU's, {len(got)} points"
                runs.check(what, good, f"{worst:.1e} (at most {CURVE})")
            off = fvu(gpu) / want_fvu - 1
            what = f"{preset} {precision}: validation FVU beside the CPU's {want_fvu:.5f}"
            runs.check(what, abs(off) <= FVU, f"{off:+.2%}")
    for precision in PRECISIONS if device != "cpu" else ["f32"]:
        first = Path(runs.args.out) / f"gpu-relaxed-topk-{precision}"
        again = runs.train(f"again-{precision}", device, precision, "relaxed-topk")
        differ = same_bits(first, again)
        runs.check(f"{precision}: the same bits twice", not differ, ", ".join(differ) or "equal")
        resumed, killed = kill_and_resume(runs, precision, "relaxed-topk")
        differ = same_bits(first, resumed)
        where = "killed in the middle" if killed else "it ended before it could be killed"
        figure = f"{where}; {', '.join(differ) or 'equal'}"
        runs.check(f"{precision}: the same bits after kill and resume", killed and not differ, figure)


def main():
    args = arguments()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    runs, failed = Runs(args), None
    try:
        compare(runs)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        failed = f"{type(error).__name__}: {error}"
        print(f"FAIL  {failed}")
    good = failed is None and all(c["ok"] for c in runs.checks)
    record = {"device": args.device, "checks": runs.checks, "seconds": runs.seconds, "failed": failed}
    (Path(args.out) / "gpu_train.json").write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
