#!/usr/bin/env python3
"""Which recipe gives the best model in the same steps? Every recipe on every data set, size and seed; a line a run.

    python3 benches/quality/study.py run --sae target/release/sae --out results.csv --data NAME=FILE.h5 ...
    python3 benches/quality/study.py report results.csv --out FOLDER

`run` may be stopped and started again: runs that are in the file are not made again, so cells may also be made on
several days; `--jobs` makes that many at once. Needs numpy and safetensors, `report` matplotlib. All runs of a data set
have the same split; all recipes of a cell see the same rows, batches, steps and learning rate, and differ in what
RECIPES says. Hyperparameters are for the validation split to choose; figures to quote are those of the test split.
"""

import argparse
import concurrent.futures
import csv
import functools
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FIELDS = "data latents k recipe tied unit_norm seed steps val_fvu test_fvu train_fvu val_l0 alive evenness alike seconds".split()

# Flags of each recipe; T is a third of the steps where something is annealed. `pytorch-start` is what a PyTorch layer
# and a zero pre-bias give, `topk preset` what Gao et al. 2024 do, `default` what `sae train` does without flags, and
# `default none` that without its warm-up.
PYTORCH_START = ["--preset", "relaxed-topk", "--relaxation", "none"]
DATA_START = [*PYTORCH_START, "--init", "data", "--pre-bias", "mean"]
AUXK = ["--aux-k", "D/2"]
SOFTMAX = ["--relaxation", "softmax", "--anneal-steps", "T"]
RECIPES = {
    "pytorch-start hard": PYTORCH_START,
    "pytorch-start hard+auxk": PYTORCH_START + AUXK,
    "pytorch-start softmax": PYTORCH_START + SOFTMAX,
    "topk preset (hard+auxk)": ["--preset", "topk"],
    "hard": DATA_START,
    "hard+auxk": DATA_START + AUXK,
    "softmax": DATA_START + SOFTMAX,
    **{
        name: [*DATA_START, "--relaxation", name, "--pool", "8k", "--anneal-steps", "T"]
        for name in ("subset", "lapsum", "anneal-k")
    },
    "default none": ["--relaxation", "none"],
    "default": [],
}


def train(sae, path, cell, folder, args):
    """One run; returns its figures and decoder (M, D) of alive latents."""
    rows, d_in = shape(sae, path)
    words = {"T": args.steps // 3, "D/2": d_in // 2, "8k": 8 * cell["k"]}
    common = [sae, "train", path, "--out", folder, "--overwrite", "--quiet", "--device", args.device]
    command = common + ["--threads", args.threads] if args.threads else common
    command += ["--latents", cell["latents"], "-k", cell["k"], "--seed", cell["seed"], "--split-seed", 0]
    command += ["--steps", args.steps, "--batch-size", args.batch_size, "--lr", args.lr]
    command += ["--tied" if cell["tied"] else "--untied", "--unit-norm-decoder", str(cell["unit_norm"]).lower()]
    # Evaluations on the way change nothing but when the default stops: for it they need the validation split, a tenth of
    # the rows, and for the others none.
    stops = "--preset" not in RECIPES[cell["recipe"]]
    command += ["--eval-rows", rows // 7 + 1] if stops else ["--eval-every", args.steps]
    command += ["--checkpoint-every", args.steps]
    command += [words.get(flag, flag) for flag in RECIPES[cell["recipe"]]]
    begun = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    table = Path(folder).with_suffix(".tsv")
    features = [sae, "features", folder, path, "--split", "train", "--quiet", "--overwrite", "-o", str(table)]
    subprocess.run(features, check=True, stdout=subprocess.DEVNULL)
    with open(table, newline="") as file:
        rates = np.array([float(line["firing_rate"]) for line in csv.DictReader(file, delimiter="\t")])
    summary = json.loads((Path(folder) / "summary.json").read_text())
    from safetensors.numpy import load_file

    decoder = load_file(Path(folder) / "model.safetensors")["w_dec"][rates > 0]
    share = rates[rates > 0] / rates.sum()
    figures = {
        "val_fvu": summary["val"]["fvu"],
        "test_fvu": summary["test"]["fvu"],
        "train_fvu": summary["train"]["fvu"],
        "val_l0": summary["val"]["l0"],
        "alive": 1 - summary["dead_fraction"],
        # Entropy of the firing rates over that of M equal ones.
        "evenness": float(-(share * np.log(share)).sum() / math.log(len(rates))),
        "seconds": seconds,
    }
    return figures, decoder / np.linalg.norm(decoder, axis=1, keepdims=True)


@functools.cache
def shape(sae, path):
    """Rows and values of a row of a data file."""
    result = subprocess.run([sae, "inspect", path, "--json"], check=True, capture_output=True)
    facts = json.loads(result.stdout)
    return facts["n_rows"], facts["d_in"]


def alike(a, b):
    """Mean over the latents of each of the best cosine among those of the other."""
    cosine = a @ b.T
    return 0.5 * (cosine.max(1).mean() + cosine.max(0).mean())


def cells(args):
    for entry in args.data:
        name, path = entry.split("=", 1)
        # What most people train first: a stopped study has whole tables of it.
        for tied, unit, latents, k in itertools.product(args.tied, args.unit_norm, args.latents, args.k):
            for recipe in args.recipes:
                yield path, {"data": name, "latents": latents, "k": k, "recipe": recipe, "tied": tied, "unit_norm": unit}


def run(args):
    out = Path(args.out)
    done = set()
    if out.exists():
        with open(out, newline="") as file:
            done = {tuple(line[f] for f in FIELDS[:8]) for line in csv.DictReader(file)}
    else:
        out.write_text(",".join(FIELDS) + "\n")
    # A dictionary is compared with those of other seeds, so a cell is made whole or not at all.
    keys = lambda cell: [{**cell, "seed": seed, "steps": args.steps} for seed in range(args.seeds)]
    missing = [
        (path, cell)
        for path, cell in cells(args)
        if not all(tuple(str(key[f]) for f in FIELDS[:8]) in done for key in keys(cell))
    ]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        made = [pool.submit(make_cell, path, keys(cell), args) for path, cell in missing]
        try:
            for lines in concurrent.futures.as_completed(made):
                lines = lines.result()
                with open(out, "a", newline="") as file:
                    csv.DictWriter(file, FIELDS, lineterminator="\n").writerows(lines)
                mean = np.mean([float(line["val_fvu"]) for line in lines])
                print(*(lines[0][f] for f in FIELDS[:6]), f"val FVU {mean:.4f}", file=sys.stderr, flush=True)
        finally:
            # A cell that fails ends the study, not after all others.
            pool.shutdown(cancel_futures=True)


def make_cell(path, keys, args):
    """The runs of a cell, one a seed; returns their lines."""
    lines, decoders = [], []
    for key in keys:
        with tempfile.TemporaryDirectory() as folder:
            figures, decoder = train(args.sae, path, key, f"{folder}/run", args)
        lines.append({**key, **figures})
        decoders.append(decoder)
    pairs = list(itertools.combinations(range(len(decoders)), 2))
    for i, line in enumerate(lines):
        mine = [alike(decoders[a], decoders[b]) for a, b in pairs if i in (a, b)]
        line["alike"] = float(np.mean(mine)) if mine else float("nan")
        line.update({f: f"{line[f]:.6g}" for f in FIELDS[8:]})
    return lines


def report(args):
    with open(args.results, newline="") as file:
        lines = list(csv.DictReader(file))
    groups = {}
    for line in lines:
        groups.setdefault(tuple(line[f] for f in FIELDS[:6]), []).append(line)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    of = lambda runs, field: np.array([float(run[field]) for run in runs])
    text = ["| data | M | k | recipe | tied | unit norm | validation FVU | test FVU | alive | alike | evenness | s |"]
    text.append("| --- " * 12 + "|")
    for key, runs in sorted(groups.items(), key=lambda g: (g[0][:3], of(g[1], "val_fvu").mean())):
        spread = lambda field: f"{of(runs, field).mean():.4f} ± {of(runs, field).std(ddof=min(1, len(runs) - 1)):.4f}"
        rest = [f"{100 * of(runs, 'alive').mean():.1f} %", *(f"{of(runs, f).mean():.2f}" for f in ("alike", "evenness"))]
        row = [*key[:4], *("yes" if v == "True" else "no" for v in key[4:]), spread("val_fvu"), spread("test_fvu"), *rest]
        text.append("| " + " | ".join([*row, f"{of(runs, 'seconds').mean():.0f}"]) + " |")
    (out / "table.md").write_text("\n".join(text) + "\n")
    (out / "short.md").write_text(short(groups, of))
    plots(groups, of, out)


def short(groups, of):
    """Test FVU and latents alive of the recipes that a reader asks for first: untied without unit norm, then the others."""

    def table(head, recipes, rows):
        text = ["| " + " | ".join(head + recipes) + " |", "| --- " * (len(head) + len(recipes)) + "|"]
        for row, size, kind in rows:
            for recipe in recipes:
                runs = groups.get((*size, recipe, *kind))
                row.append(f"{of(runs, 'test_fvu').mean():.4f} ({100 * of(runs, 'alive').mean():.0f} %)" if runs else "")
            text.append("| " + " | ".join(row) + " |")
        return "\n".join(text) + "\n"

    sizes = sorted({key[:3] for key in groups}, key=lambda size: (size[0], int(size[1]), int(size[2])))
    untied = ["default", "default none", "topk preset (hard+auxk)", "pytorch-start hard+auxk", "pytorch-start softmax"]
    first = table(["data", "M", "k"], untied, [([*size], size, ("False", "False")) for size in sizes])
    kinds = sorted({(key[:3], key[4:]) for key in groups if key[4:] != ("False", "False")})
    words = lambda kind: [("tied" if kind[0] == "True" else "untied") + (", unit norm" if kind[1] == "True" else "")]
    others = [([*size, *words(kind)], size, kind) for size in sizes for of_size, kind in kinds if of_size == size]
    every = ["default", "topk preset (hard+auxk)", "hard+auxk", "hard", "lapsum", "subset", "anneal-k", "softmax"]
    return first + "\n" + table(["data", "M", "k", ""], every, others)


def plots(groups, of, out):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    names = sorted({key[0] for key in groups})
    recipes = [r for r in RECIPES if any(key[3] == r for key in groups)]
    for field, label, file in (("val_fvu", "validation FVU", "fvu.png"), ("alive", "latents alive", "alive.png")):
        columns = min(3, len(names))
        n_rows = math.ceil(len(names) / columns)
        size = (5 * columns, 4.2 * n_rows)
        figure, axes = plt.subplots(n_rows, columns, figsize=size, squeeze=False, sharey=True)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names):
            # A start that fails is several times worse than the rest, which should still be told apart.
            if field == "val_fvu":
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            for i, recipe in enumerate(recipes):
                runs = [(key, r) for key, r in groups.items() if key[0] == name and key[3] == recipe]
                for key, r in runs:
                    colour = "tab:blue" if key[4] == "False" else "tab:orange"
                    marker = "o" if key[5] == "False" else "^"
                    axis.plot(of(r, field).mean(), i, marker, color=colour, alpha=0.6, markersize=5)
            axis.set_title(name)
            axis.set_xlabel(label)
            axis.set_yticks(range(len(recipes)), recipes)
        figure.suptitle("mean over seeds; blue untied, orange tied; circles free decoder, triangles unit norm", fontsize=9)
        figure.tight_layout()
        figure.savefig(out / file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("run")
    p.add_argument("--sae", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--data", nargs="+", required=True, metavar="NAME=FILE")
    p.add_argument("--latents", nargs="+", type=int, default=[1024, 2048])
    p.add_argument("--k", nargs="+", type=int, default=[16, 32])
    for flag in ("--tied", "--unit-norm"):
        p.add_argument(flag, nargs="+", type=lambda text: text == "yes", default=[False, True], metavar="yes|no")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int)
    p.add_argument("--jobs", type=int, default=1, help="runs at once")
    p.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    p.set_defaults(do=run)
    p = commands.add_parser("report")
    p.add_argument("results")
    p.add_argument("--out", required=True)
    p.set_defaults(do=report)
    args = parser.parse_args()
    args.do(args)


main()
