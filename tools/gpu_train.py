"""Training on a GPU beside training on the CPU: the same run, the same bits again, and after a kill.

    python3 gpu_train.py --sae SAE --data FILE.h5 --out DIR [--device cuda]

200 steps: the loss curve in float32 within 1e-3 of the CPU's until rounding has been amplified, the final validation
FVU no worse than the CPU's by more than seeds differ, in every precision; two runs give the same bits, and so does one
that was killed and resumed. Needs Python alone.
"""

import argparse
import concurrent.futures
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PRECISIONS = ["f32", "tf32", "bf16"]
# Curves of float32 differ by the order of sums. Two CPU runs whose rows differ by 1e-7 stay within 1e-3 for so many steps
# of the sample data, and then separate by up to 0.4 (data-topk, whose candidates come and go) and 0.04 (topk, whose
# auxiliary loss takes dead latents up); an H100 was beyond 1e-3 of topk's by step 90.
CURVE, STEPS = 1e-3, {"data-topk": 30, "topk": 60, "relaxed-topk": 200, "sparse-l1": 80}
# The final FVU of those runs differs by up to 1.5 %, and that of CPU runs of other seeds by 1 to 10 %: what is looked for
# is a card that learns worse.
WORSE = 0.04


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", required=True, help="the program")
    parser.add_argument("--data", required=True, help="embeddings in HDF5")
    parser.add_argument("--out", required=True, help="folder for the runs and gpu_train.json")
    parser.add_argument("--device", default="cuda", help="cpu checks this script itself")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cpu-threads", type=int, default=4, help="of each CPU run; they run beside each other")
    parser.add_argument("--latents", type=int, default=2048)
    return parser.parse_args()


class Runs:
    def __init__(self, args):
        self.args, self.checks, self.seconds = args, [], {}

    def command(self, name, device, precision, preset):
        a = self.args
        sizes = ["--latents", a.latents, "--k", 32, "--steps", a.steps, "--batch-size", 128, "--seed", 7]
        marks = ["--eval-every", 5, "--checkpoint-every", 20, "--early-stop", 0]
        if device == "cpu":
            marks += ["--threads", a.cpu_threads]
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


def curve(folder, steps):
    """Training loss of the evaluations up to a step."""
    return [float(row["train_loss"]) for row in metrics(folder) if row["train_loss"] and int(row["step"]) <= steps]


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
    precisions = PRECISIONS if device != "cpu" else ["f32"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        wanted = {preset: pool.submit(runs.train, f"cpu-{preset}", "cpu", "f32", preset) for preset in STEPS}
        made = {}
        for preset in STEPS:
            # TF32 lies between the others: it is tried with the default alone.
            for precision in precisions if preset == "data-topk" else [p for p in precisions if p != "tf32"]:
                made[preset, precision] = runs.train(f"gpu-{preset}-{precision}", device, precision, preset)
    for (preset, precision), gpu in made.items():
        cpu = wanted[preset].result()
        if precision == "f32":
            want, got = curve(cpu, STEPS[preset]), curve(gpu, STEPS[preset])
            worst = max((abs(g / w - 1) for g, w in zip(got, want)), default=float("nan"))
            good = len(got) == len(want) and worst <= CURVE
            what = f"{preset}: loss curve beside the CPU's, {len(got)} points up to step {STEPS[preset]}"
            runs.check(what, good, f"{worst:.1e} (at most {CURVE})")
        off = fvu(gpu) / fvu(cpu) - 1
        what = f"{preset} {precision}: validation FVU beside the CPU's {fvu(cpu):.5f}"
        runs.check(what, off <= WORSE, f"{off:+.2%} (at most {WORSE:+.0%})")
    for precision in [p for p in precisions if p != "tf32"]:
        first = made["relaxed-topk", precision]
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
