"""The default of `sae train` beside hard top-k in PyTorch, without and with AuxK: the same split, steps and batch size.

PyTorch's side is what a person writes first: nn.Linear's start, zero biases, Adam; AuxK as Gao et al. 2024 have it (the
D / 2 best of the latents that did not fire for two epochs, weight 1 / 32, on what the others leave), at every learning
rate of --torch-lr; `sae train` runs as it is, with its own.
FVU is about the mean of the training split, dead latents are over the training rows; both sides are evaluated by the
same code.

    python benches/quality/default_vs_torch.py --sae target/release/sae --data FILE.h5 --out DIR
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import bench_common
import quality_vs_torch as quality
import torch_model


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sae", required=True, help="the binary")
    parser.add_argument("--data", required=True, help="HDF5 file")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--torch-lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train_ours(args, seed, folder):
    """Runs `sae train` with its default recipe; gives the run folder."""
    run = Path(folder) / f"run-{seed}"
    command = [args.sae, "train", args.data, "--out", run, "--seed", seed, "--split-seed", 0, "--threads", args.threads]
    command += ["--latents", args.latents, "-k", args.k, "--steps", args.steps, "--batch-size", args.batch_size]
    subprocess.run([str(part) for part in command] + ["--quiet", "--device", "cpu"], check=True, capture_output=True)
    return run


def auxiliary_loss(model, x, keep, y, dead, count):
    """Mean squared error of what the `count` best dead latents leave of the residual, which is held constant."""
    if not dead.any():
        return 0.0
    scores = keep["z"].masked_fill(~dead, -math.inf)
    values, indices = torch.topk(scores, min(count, int(dead.sum())), dim=-1)
    code = torch.zeros_like(scores).scatter(-1, indices, torch.relu(values))
    std = x.std(dim=-1, keepdim=True, unbiased=True) if model.normalize else 1.0
    return ((code @ model.w_dec * std - (x - y).detach()) ** 2).mean()


def train_torch(args, seed, train, lr, aux_k):
    torch.manual_seed(seed)
    model = torch_model.RelaxedTopK(train.shape[1], args.latents, args.k, tied=False)
    optimizer = torch_model.adam(model, lr)
    order = quality.batches(len(train), args.batch_size, torch.Generator().manual_seed(seed))
    idle = torch.zeros(args.latents, dtype=torch.long)
    for _ in range(args.steps):
        x, keep = train[next(order)], {}
        y = model(x, keep=keep)
        loss = ((y - x) ** 2).mean()
        if aux_k:
            loss = loss + auxiliary_loss(model, x, keep, y, idle >= 2 * len(train), aux_k) / 32
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        idle = torch.where((keep["h"] > 0).any(dim=0), 0, idle + len(x))
    return model


def load(args, path, d_in):
    """A run's model inside the literal one."""
    from safetensors.torch import load_file

    model = torch_model.RelaxedTopK(d_in, args.latents, args.k, tied=False)
    torch_model.set_parameters(model, load_file(path))
    return model


def scores(model, splits):
    """{"val": {"fvu": ..}, ..}; the test split's figure is shown, never used."""
    mean = splits["train"].double().mean(dim=0)
    return {split: quality.evaluate(model, rows, mean) for split, rows in splits.items()}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    info = bench_common.machine(args.threads)
    ids, rows = bench_common.load_rows(args.data)
    rows = torch.from_numpy(rows)
    found = {"`sae train`, as it is": []}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = train_ours(args, seed, folder)
            splits = quality.split_rows(run / "splits.tsv", ids, rows)
            found["`sae train`, as it is"].append(scores(load(args, run / "model.safetensors", rows.shape[1]), splits))
        for name, aux_k in (("hard", 0), ("hard + AuxK", rows.shape[1] // 2)):
            for lr in args.torch_lr:
                model = train_torch(args, seed, splits["train"], lr, aux_k)
                found.setdefault(f"PyTorch {name}, lr {lr:g}", []).append(scores(model, splits))
    mean = lambda of, runs: sum(map(of, runs)) / len(runs)
    spread = lambda of, runs: max(map(of, runs)) - min(map(of, runs))
    line = lambda name, runs: [
        name,
        *(f"{mean(lambda r: r[s]['fvu'], runs):.4f} ± {spread(lambda r: r[s]['fvu'], runs) / 2:.4f}" for s in ("val", "test")),
        f"{mean(lambda r: r['train']['fvu'], runs):.4f}",
        f"{mean(lambda r: r['val']['l0'], runs):.1f}",
        f"{100 * mean(lambda r: 1 - r['train']['dead_fraction'], runs):.1f} %",
    ]
    settings = (
        f"{Path(args.data).name}: {len(rows)} rows of {rows.shape[1]}, untied, M = {args.latents}, k = {args.k}, "
        f"{args.steps} steps of {args.batch_size} rows, seeds {args.seeds}, one split"
    )
    body = [line(name, runs) for name, runs in sorted(found.items(), key=lambda f: mean(lambda r: r["val"]["fvu"], f[1]))]
    text = "\n".join(
        [
            "# The default beside hard top-k in PyTorch\n",
            f"{settings}.\n",
            f"{bench_common.machine_line(info)}.\n",
            bench_common.markdown_table(
                ["recipe", "validation FVU", "test FVU", "train FVU", "L0", "latents alive"], body
            ),
            "\nMeans over the seeds, ± half of their range.",
        ]
    )
    name = f"default_vs_torch-{Path(args.data).stem}"
    bench_common.write_results(args.out, name, {"machine": info, "arguments": vars(args), "results": found}, text)


if __name__ == "__main__":
    main()
