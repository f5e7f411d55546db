#!/usr/bin/env python3
"""Which kind of sparsity is best at what? Every kind on every data set, k and seed; a line of JSON a run.

    python3 benches/quality/kinds.py run --sae target/release/sae --out results.jsonl --data NAME=FILE.h5[=LABELS.tsv] ...
    python3 benches/quality/kinds.py report results.jsonl --out FOLDER

`run` may be stopped and started again: runs that are in the file are not made again. Needs numpy, safetensors and
h5py, `report` matplotlib. All runs of a data set have the same split, steps and batch size, and the default's options but
for the kind. Measured: FVU, L0 and what fires by `sae eval` and `sae features` on the test split and on all rows; for
labels, the latent that predicts a label best on one half of the rows, by its F1 and AUROC on the other half; how alike
the decoders of two seeds are (mean over latents of the best cosine in the other).
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KINDS = {
    "topk, LapSum warm-up (default)": [],
    "topk": ["--relaxation", "none"],
    "batch-topk": ["--activation", "batch-topk"],
    "jumprelu": ["--activation", "jumprelu"],
    "relu, L1": ["--activation", "relu"],
    "topk, prefixes": ["--relaxation", "none", "--prefixes", "auto"],
    "batch-topk, prefixes": ["--activation", "batch-topk", "--prefixes", "auto"],
}
FIGURES = "test_fvu test_l0 val_l0 alive heavy seconds f1 auroc predicted".split()


def sae(args, *words):
    command = [args.sae, *words, "--quiet", "--device", "cpu", "--threads", args.threads]
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def label_figures(table, labels):
    """Mean over labels of F1 and AUROC on the held half of the latent that is best on the other, and labels above 0.5."""
    best = {}
    with open(table, newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            key = (line["column"], line["label"])
            if key not in best or float(line["chosen_f1"]) > float(best[key]["chosen_f1"]):
                best[key] = line
    f1 = [float(best[label]["f1"]) if label in best else 0.0 for label in labels]
    auroc = [float(best[label]["auroc"]) if label in best else 0.5 for label in labels]
    return float(np.mean(f1)), float(np.mean(auroc)), int(np.sum(np.array(f1) > 0.5))


def one(args, data, labels, cell, folder):
    """One run; returns its figures and its decoder (alive latents, D), rows of length 1."""
    run, codes, table = Path(folder) / "run", Path(folder) / "features.tsv", Path(folder) / "labels.tsv"
    options = ["--latents", args.latents, "-k", cell["k"], "--seed", cell["seed"], "--split-seed", 0]
    options += ["--steps", args.steps, "--batch-size", args.batch_size, "--checkpoint-every", args.steps]
    begun = time.monotonic()
    sae(args, "train", data, "--out", run, *options, *KINDS[cell["kind"]])
    seconds = time.monotonic() - begun
    summary = json.loads((run / "summary.json").read_text())
    more = ["--labels", labels, "--associations", table] if labels else []
    facts = json.loads(sae(args, "features", run, data, "-o", codes, *more, "--json"))
    rates = np.zeros(args.latents)
    with open(codes, newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            rates[int(line["latent"])] = float(line["firing_rate"])
    if not rates.any():
        sys.exit(f"{codes} has no latent that fires: its columns are not those that this script reads")
    figures = {
        "test_fvu": summary["test"]["fvu"],
        "test_l0": summary["test"]["l0"],
        "val_l0": summary["val"]["l0"],
        "alive": 1 - summary["dead_fraction"],
        "heavy": int((rates > 0.1).sum()),
        "seconds": seconds,
        "by_prefix": summary["test"].get("fvu_by_prefix"),
    }
    if labels:
        names = [(label["column"], label["value"]) for label in facts["labels"]["labels"]]
        figures["f1"], figures["auroc"], figures["predicted"] = label_figures(table, names)
        figures["labels"] = len(names)
    from safetensors.numpy import load_file

    decoder = load_file(run / "model.safetensors")["w_dec"][rates > 0]
    return figures, decoder / np.linalg.norm(decoder, axis=1, keepdims=True)


def alike(a, b):
    cosine = a @ b.T
    return float(0.5 * (cosine.max(1).mean() + cosine.max(0).mean()))


def run(args):
    out, done = Path(args.out), set()
    if out.exists():
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        done = {tuple(line[key] for key in ("data", "kind", "k", "seed")) for line in lines}
    places = [(entry + "==").split("=")[:3] for entry in args.data]
    decoders = {}
    # The first seeds of everything, then the next: a study that is stopped has whole tables.
    for seed, k, (name, data, labels), kind in itertools.product(args.seeds, args.k, places, args.kinds):
        cell = {"data": name, "kind": kind, "k": k, "seed": seed}
        if tuple(cell.values()) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures, decoder = one(args, data, labels, cell, folder)
        keep = Path(f"{out}.decoders")
        keep.mkdir(exist_ok=True)
        stem = f"{name} {kind} {k}".replace("/", "-")
        np.save(keep / f"{stem} {seed}.npy", decoder.astype(np.float16))
        others = [path for path in keep.glob(f"{stem} *.npy") if path.stem != f"{stem} {seed}"]
        likeness = [alike(decoder, np.load(path).astype(np.float32)) for path in others]
        figures["alike"] = float(np.mean(likeness)) if likeness else None
        line = {**cell, "latents": args.latents, "steps": args.steps, "batch_size": args.batch_size, **figures}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def report(args):
    lines = [json.loads(line) for line in Path(args.results).read_text().splitlines()]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    cells = sorted({(line["data"], line["k"]) for line in lines})
    text = "| data | k | kind | seeds | test FVU | spread | test L0 | val L0 | alive | heavy | seconds | F1 | AUROC | labels above 0.5 | alike |\n"
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for data, k in cells:
        for kind in KINDS:
            of = [line for line in lines if (line["data"], line["k"], line["kind"]) == (data, k, kind)]
            if not of:
                continue

            def mean(key, digits):
                values = [line[key] for line in of if line.get(key) is not None]
                return f"{np.mean(values):.{digits}f}" if values else ""

            fvu = [line["test_fvu"] for line in of]
            total = f"of {of[0]['labels']}" if "labels" in of[0] else ""
            text += (
                f"| {data} | {k} | {kind} | {len(of)} | {mean('test_fvu', 4)} | {np.ptp(fvu):.4f} | {mean('test_l0', 1)} | "
                f"{mean('val_l0', 1)} | {100 * float(mean('alive', 4)):.0f} % | {mean('heavy', 1)} | {mean('seconds', 0)} | "
                f"{mean('f1', 3)} | {mean('auroc', 3)} | {mean('predicted', 1)} {total} | {mean('alike', 3)} |\n"
            )
    (out / "table.md").write_text(text)
    plot(lines, out / "fvu.png")


def plot(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({line["data"] for line in lines})
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4.2), squeeze=False)
    for axis, name in zip(axes[0], names):
        for kind in KINDS:
            points = []
            for k in sorted({line["k"] for line in lines}):
                of = [line for line in lines if (line["data"], line["k"], line["kind"]) == (name, k, kind)]
                if of:
                    points.append([np.mean([line[key] for line in of]) for key in ("test_l0", "test_fvu")])
            if points:
                axis.plot(*np.array(points).T, marker="o", markersize=4, label=kind)
        axis.set(xscale="log", yscale="log", title=name, xlabel="active latents per test row", ylabel="test FVU")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("run")
    make.set_defaults(call=run)
    make.add_argument("--sae", required=True)
    make.add_argument("--out", required=True)
    make.add_argument("--data", required=True, nargs="+")
    make.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    make.add_argument("--k", type=int, nargs="+", default=[32, 8, 16, 64])
    make.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    make.add_argument("--latents", type=int, default=1024)
    make.add_argument("--steps", type=int, default=600)
    make.add_argument("--batch-size", type=int, default=256)
    make.add_argument("--threads", type=int, default=2)
    show = commands.add_parser("report")
    show.set_defaults(call=report)
    show.add_argument("results")
    show.add_argument("--out", required=True)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    sys.exit(main())
