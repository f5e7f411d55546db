"""Trains the literal PyTorch model and `sae train` with the same settings on the same split.

Both start as nn.Linear does with zero biases, see the same number of shuffled batches of training
rows, and use Adam at a constant rate. Reported on the hard top-k model: FVU = squared error / sum of
squares about the mean row of the TRAINING split, dead latents over the training rows, seconds.
The run's model.safetensors is evaluated here as well, by the same code as PyTorch's model.

    python benches/quality_vs_torch.py --sae target/release/sae --data FILE.h5 --out benches/runs/DATE-MACHINE
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import bench_common
import torch_model


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sae", required=True, help="the binary")
    parser.add_argument("--data", required=True, help="HDF5 file")
    parser.add_argument("--out", required=True, help="folder for quality_vs_torch.json and .md")
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--anneal-steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of each side a seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--untied", action="store_true", help="a decoder of its own")
    parser.add_argument("--no-normalize", action="store_true")
    parser.add_argument("--sae-arg", action="append", default=[], help="one more argument of `sae train`")
    return parser.parse_args()


def train_ours(args, seed, folder):
    """Runs `sae train`; gives the run folder and its wall seconds, start-up and evaluation included."""
    run = Path(folder) / f"run-{seed}"
    settings = {
        "--out": run,
        "--latents": args.latents,
        "--k": args.k,
        "--steps": args.steps,
        "--batch-size": args.batch_size,
        "--lr": args.lr,
        "--anneal-steps": args.anneal_steps,
        "--seed": seed,
        "--threads": args.threads,
    }
    command = [args.sae, "train", args.data, "--untied" if args.untied else "--tied", "--quiet"]
    command += ["--no-normalize"] if args.no_normalize else []
    command += [str(part) for pair in settings.items() for part in pair] + args.sae_arg
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        sys.exit(f"`{' '.join(map(str, command))}` failed: {done.stderr.strip()}")
    return run, seconds


def split_rows(path, ids, rows):
    """{"train": rows, ...} as the run's splits.tsv says, by full name or by its last part."""
    with open(path, newline="") as file:
        split_of = {line["id"]: line["split"] for line in csv.DictReader(file, delimiter="\t")}
    places = {}
    for i, name in enumerate(ids):
        split = split_of.get(name) or split_of.get(name.rsplit("/", 1)[-1])
        if split is None:
            sys.exit(f"{path}: id {name!r} of the data is not in it")
        places.setdefault("val" if split == "validation" else split, []).append(i)
    missing = {"train", "val"} - places.keys()
    if missing:
        sys.exit(f"{path}: no rows in {', '.join(sorted(missing))}; use more data")
    return {split: rows[torch.tensor(index)] for split, index in places.items()}


def batches(n_rows, batch_size, generator):
    """Shuffled full batches, epoch after epoch; a last partial batch is left out."""
    size = min(batch_size, n_rows)
    while True:
        order = torch.randperm(n_rows, generator=generator)
        yield from order[: n_rows // size * size].split(size)


def train_torch(args, seed, train):
    torch.manual_seed(seed)
    tied, normalize = not args.untied, not args.no_normalize
    model = torch_model.RelaxedTopK(train.shape[1], args.latents, args.k, tied, normalize)
    optimizer = torch_model.adam(model, args.lr)
    order = batches(len(train), args.batch_size, torch.Generator().manual_seed(seed))
    began = time.perf_counter()
    for step in range(args.steps):
        t = min(step, args.anneal_steps) / args.anneal_steps if args.anneal_steps else 1.0
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(train[next(order)], t)
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            sys.exit(f"PyTorch's loss became {loss.item()} at step {step}; try a lower --lr")
    return model, time.perf_counter() - began


def load_ours(args, path, d_in):
    """The run's model inside the literal one."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    model = torch_model.RelaxedTopK(d_in, args.latents, args.k, not args.untied, not args.no_normalize)
    torch_model.set_parameters(model, tensors)
    if not args.untied and not torch.equal(tensors.get("w_dec", tensors["w_enc"]), tensors["w_enc"]):
        sys.exit(f"{path}: the model should be tied, but w_dec differs from w_enc")
    return model


@torch.no_grad()
def evaluate(model, rows, train_mean):
    """FVU, MSE and mean active latents of the hard model, and which latents ever fire."""
    squared = about_mean = active = 0.0
    fires = torch.zeros(model.w_enc.shape[0], dtype=torch.bool)
    for x in rows.split(1024):
        keep = {}
        y = model(x, keep=keep)
        squared += (y.double() - x).square().sum().item()
        about_mean += (x.double() - train_mean).square().sum().item()
        active += (keep["h"] > 0).sum().item()
        fires |= (keep["h"] > 0).any(dim=0)
    return {
        "fvu": squared / about_mean,
        "mse": squared / rows.numel(),
        "l0": active / len(rows),
        "dead_fraction": 1.0 - fires.double().mean().item(),
    }


def result(model, splits, seconds, rows_per_second):
    mean = splits["train"].double().mean(dim=0)
    scores = {split: evaluate(model, rows, mean) for split, rows in splits.items()}
    dead = scores["train"]["dead_fraction"]
    return {**scores, "dead_fraction": dead, "seconds": seconds, "rows_per_second": rows_per_second}


def one_seed(args, seed, ids, rows, folder):
    run, seconds = train_ours(args, seed, folder)
    splits = split_rows(run / "splits.tsv", ids, rows)
    stated = json.loads((run / "summary.json").read_text())
    ours = load_ours(args, run / "model.safetensors", rows.shape[1])
    model, torch_seconds = train_torch(args, seed, splits["train"])
    seen = args.steps * min(args.batch_size, len(splits["train"]))
    return {
        "seed": seed,
        "sae train": {**result(ours, splits, seconds, stated["rows_per_second"]), "summary": stated},
        "PyTorch": result(model, splits, torch_seconds, seen / torch_seconds),
    }


def table(results):
    header = ["side", "seed", "validation FVU", "train FVU", "validation MSE", "L0", "dead", "wall, s", "rows/s"]
    body = []
    for side in ("sae train", "PyTorch"):
        for one in results:
            r = one[side]
            body.append([side, one["seed"]] + cells(r))
        if len(results) > 1:
            body.append([f"**{side}**", "mean"] + cells(mean_of([one[side] for one in results])))
    return bench_common.markdown_table(header, body)


def cells(r):
    return [
        f"{r['val']['fvu']:.4f}",
        f"{r['train']['fvu']:.4f}",
        f"{r['val']['mse']:.4g}",
        f"{r['val']['l0']:.1f}",
        f"{100 * r['dead_fraction']:.1f} %",
        f"{r['seconds']:.1f}",
        f"{r['rows_per_second']:,.0f}",
    ]


def mean_of(results):
    first = results[0]
    return {
        key: mean_of([r[key] for r in results])
        if isinstance(value, dict)
        else statistics.fmean(r[key] for r in results)
        for key, value in first.items()
        if key in ("train", "val", "fvu", "mse", "l0", "dead_fraction", "seconds", "rows_per_second")
    }


def disagreements(results):
    """Where summary.json and the evaluation here differ by more than 0.1 %: one of them is wrong."""
    lines = []
    for one in results:
        for split in ("train", "val", "test"):
            stated = one["sae train"]["summary"].get(split) or {}
            here = one["sae train"].get(split, {})
            for name in sorted(stated.keys() & here.keys()):
                if stated[name] is not None and not math.isclose(stated[name], here[name], rel_tol=1e-3):
                    lines.append(f"seed {one['seed']}, {split} {name}: {stated[name]:.6g}, here {here[name]:.6g}")
        stated = one["sae train"]["summary"].get("dead_fraction")
        here = one["sae train"]["dead_fraction"]
        if stated is not None and abs(stated - here) > 1e-3:
            lines.append(f"seed {one['seed']}, dead_fraction: {stated:.6g}, here {here:.6g}")
    return lines


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    info = bench_common.machine(args.threads)
    ids, rows = bench_common.load_rows(args.data)
    with tempfile.TemporaryDirectory() as folder:
        results = [one_seed(args, seed, ids, torch.from_numpy(rows), folder) for seed in args.seeds]
    weights = "untied" if args.untied else "tied"
    settings = (
        f"{Path(args.data).name}: {rows.shape[0]} rows of {rows.shape[1]}, {weights}, M = {args.latents}, "
        f"k = {args.k}, {args.steps} steps of {args.batch_size} rows, lr {args.lr}, annealing {args.anneal_steps} steps"
    )
    differing = disagreements(results)
    text = "\n".join(
        [
            "# Reconstruction beside the literal PyTorch model\n",
            f"{settings}.\n",
            f"{bench_common.machine_line(info)}.\n",
            "Hard top-k; FVU about the mean of the training split; dead over the training rows. The wall "
            "time of `sae train` holds loading, evaluations and writing; PyTorch's only its training loop.\n",
            table(results),
            "\nsummary.json agrees with the evaluation here."
            if not differing
            else "\n**summary.json differs from the evaluation here:** " + "; ".join(differing),
        ]
    )
    record = {"machine": info, "arguments": vars(args), "results": results, "disagreements": differing}
    bench_common.write_results(args.out, "quality_vs_torch", record, text)


if __name__ == "__main__":
    main()
