"""`sae train` beside the peers' own trainers on cached rows: rows/s in turns, and quality at equal steps.

    python3 -m venv peers-venv
    peers-venv/bin/pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3 h5py safetensors
    peers-venv/bin/python benches/peers.py --sae target/release/sae --data minilm=FILE.h5 --out DIR

The peers run through their own public trainers, none of their code is repeated here: SAELens' `SAETrainer.fit` (all its
kinds), dictionary_learning's `TopKTrainer.update`, and sparsify's `Trainer.fit`, whose "language model" is one that
gives the cached rows. `eager` is what a person writes first: this repository's literal model in eager PyTorch, hard top-k
from the first step, Adam. All get the same rows in memory in shuffled full batches, the split of `sae` (seed 0), the same
number of steps, and the same threads. The peers see the rows as they are; `sae` standardises each row and gives the
deviation and the mean back, two numbers per row that the peers have to encode.

Two columns of quality. "default": each at its own defaults but for the sizes; what a default counts in thousands of steps
(warm-up of the learning rate, dead latents) stays so. "tuned": the learning rate of --factors times the default (for ours:
times 2e-4 / sqrt(M / 2^14), which is that of two of them) with the best validation FVU at less than 1.25 k active latents;
warm-up a twentieth of the steps; AuxK on, for latents that did not fire in two epochs; sparsify with its Adam, as its default (sign descent without a
schedule) has another kind of learning rate. SAELens' jumprelu gets k by its own `target_l0`; its L1 has no such aim, and the
coefficient is searched, in at most six runs, until the mean L0 on training rows is within 5 % of k. Both see rows scaled to
length sqrt(D) by its own normalisation. The default of `sae` is not tuned. Quality is measured by one NumPy function on
the exported weights of all: FVU about the mean of the training split, L0, dead latents over the training rows. BatchTopK
runs with its threshold, as exported.

Speed: processes take turns, a few steps each, --rounds times; medians. Rows per second of steps, without start-up and the
first steps; ours as `sae train` says it. Rows per CPU second as well (user and system time of all threads), and ratios of
both: on a machine that others use as well, time on the clock says little. But PyTorch's threads spin while they wait for
each other, which is CPU time too: on a busy machine ratios of CPU time flatter us. The default is measured twice: all steps
in its warm-up, and none.

Results go to --out/peers.jsonl one by one; what is there is not run again, so the same command goes on after a stop.
"""

import argparse
import itertools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bench_common

SAELENS = ["topk", "batchtopk", "matryoshka", "jumprelu", "standard"]
PEERS = [*(f"saelens-{kind}" for kind in SAELENS), "dictionary_learning", "sparsify", "eager"]
# Steps of a peer's turn that are not timed: allocation, and threads that start.
UNTIMED = 2


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sae", help="the binary")
    parser.add_argument("--data", nargs="+", metavar="NAME=FILE", help="HDF5 files")
    parser.add_argument("--out", help="folder for peers.jsonl and peers.md")
    parser.add_argument("--latents", type=int, default=0, help="M; 0 is 8 times the inputs")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=600, help="of quality; 0 leaves it out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--factors", type=float, nargs="*", default=[1, 3, 10], help="of the default learning rate; none: no tuning")
    parser.add_argument("--rounds", type=int, default=5, help="of speed; 0 leaves it out")
    parser.add_argument("--speed-latents", type=int, default=0, help="M of speed; 0 is --latents")
    parser.add_argument("--speed-steps", type=int, default=10, help="timed steps of a turn; ours does four times as many")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument(
        "--config",
        action="append",
        metavar="NAME=ARGUMENTS",
        help="a configuration of `sae train`, as in topk='--preset topk'; may be repeated "
        "(default: default= and topk='--preset topk')",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="only writes peers.md from peers.jsonl")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------------ quality, of all sides


def code(model, x):
    """(n, M) code of rows (n, D), and what undoes the standardisation: per-row factor and mean, (n, 1) each."""
    mean, std = np.zeros((len(x), 1), np.float32), np.ones((len(x), 1), np.float32)
    if model["row_eps"] is not None:
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        x = (x - mean) / (std + np.float32(model["row_eps"]))
    z = (x - model["b_in"]) @ model["w_enc"].T + model["b_enc"]
    if model["threshold"] is not None:
        z[z <= model["threshold"]] = 0
    elif model["k"]:
        kth = np.partition(z, -model["k"], axis=1)[:, [-model["k"]]]
        z[z < kth] = 0
    return np.maximum(z, 0), std, mean


def reconstruct(model, x):
    """(n, D) reconstruction of rows, and their (n, M) code."""
    h, std, mean = code(model, x)
    return (h @ model["w_dec"] + model["b_out"]) * std + mean, h


def evaluate(model, splits):
    """{"val": {"fvu", "l0"}, "test": .., "train": .., "dead": share of latents without a training row}."""
    centre = splits["train"].mean(0, dtype=np.float64)
    result = {}
    for split, rows in splits.items():
        squared = about = active = 0.0
        fires = np.zeros(len(model["b_enc"]), bool)
        for x in np.array_split(rows, max(1, len(rows) // 512)):
            y, h = reconstruct(model, x)
            squared += np.square(y.astype(np.float64) - x).sum()
            about += np.square(x - centre).sum()
            active += np.count_nonzero(h)
            fires |= (h > 0).any(0)
        result[split] = {"fvu": squared / about, "l0": active / len(rows)}
        if split == "train":
            result["dead"] = 1 - fires.mean()
    return result


def model_of(w_enc, b_enc, w_dec, b_in, b_out, k=0, threshold=None, row_eps=None):
    """What `evaluate` needs, as float32 arrays: (M, D), (M), (M, D), (D), (D); a code of k, of a threshold, or relu."""
    arrays = {"w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "b_in": b_in, "b_out": b_out, "threshold": threshold}
    plain = lambda t: None if t is None else np.asarray(t.detach().cpu() if hasattr(t, "detach") else t, dtype=np.float32)
    return {**{name: plain(t) for name, t in arrays.items()}, "k": k, "row_eps": row_eps}


def ours(path):
    """The model of a run folder."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        form = json.loads(file.metadata()["architecture"])
    if "activation" not in form:
        sys.exit(f"{path}: its metadata has another form than this script knows: {form}")
    # Scores above thresholds, all that are positive, or the k largest.
    inference, k, threshold = form["inference"], 0, None
    if inference == "threshold":
        threshold = tensors.get("threshold")
    elif inference == "topk":
        k = form["k"]
    if form["activation"] == "abs-topk" or inference not in ("topk", "relu", "threshold"):
        sys.exit(f"{path}: evaluate() does not know codes of {form['activation']!r} with inference {inference!r}")
    w_dec = tensors.get("w_dec", tensors["w_enc"])
    eps = form["norm_eps"] if form["normalize"] else None
    return model_of(tensors["w_enc"], tensors["b_lat"], w_dec, tensors["b_pre"], tensors["b_pre"], k, threshold, eps)


# ------------------------------------------------------------------------------------ the peers, each in its own process


class Rows:
    """Shuffled full batches, epoch after epoch, and clock and CPU time at which each was asked for."""

    def __init__(self, rows, job):
        import torch
        import quality_vs_torch

        self.rows, self.times = rows, []
        self.order = quality_vs_torch.batches(len(rows), job["batch_size"], torch.Generator().manual_seed(job["seed"]))

    def __iter__(self):
        return self

    def __next__(self):
        self.times.append((time.perf_counter(), time.process_time()))
        return self.rows[next(self.order)]


def saelens_sae(job, d_in, kind, l1):
    """A training SAE of SAELens at its defaults but for the sizes, and for warm-ups where it is tuned."""
    import sae_lens

    options = {"d_in": d_in, "d_sae": job["latents"]}
    warm_up = job["steps"] // 10 if job["tuned"] else 0
    if kind in ("topk", "batchtopk", "matryoshka"):
        options["k"] = job["k"]
    else:
        options["normalize_activations"] = "expected_average_only_in"
    if kind == "matryoshka":
        options["matryoshka_widths"] = [share * job["latents"] // 32 for share in (1, 3, 7, 15, 32)]
    elif kind == "jumprelu":
        options |= {"target_l0": job["k"], "l0_warm_up_steps": warm_up}
    elif kind == "standard":
        options |= {"l1_coefficient": l1, "l1_warm_up_steps": warm_up}
    names = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK", "jumprelu": "JumpReLU"}
    name = names.get(kind, "Standard") + "TrainingSAE"
    return getattr(sae_lens, name)(getattr(sae_lens, f"{name}Config")(**options))


def saelens(job, rows, kind):
    """A run of SAELens; of its L1, the one of a search by bisection whose mean L0 is nearest to k."""
    if kind != "standard":
        return saelens_run(job, rows, kind)
    import torch

    some, best = rows.rows[:4096], None
    low, high = 1e-3, 1e3
    for _ in range(6):
        torch.manual_seed(job["seed"])
        again, l1 = Rows(rows.rows, job), (low * high) ** 0.5
        found = saelens_run(job, again, kind, l1)
        rows.times = again.times
        l0 = np.count_nonzero(code(found[0], some.numpy())[0]) / len(some)
        off = abs(np.log(max(l0, 1e-3) / job["k"]))
        if best is None or off < best[0]:
            best = off, found
        if off < 0.05:
            break
        low, high = (l1, high) if l0 > job["k"] else (low, l1)
    return best[1]


def saelens_run(job, rows, kind, l1=None):
    from sae_lens import SAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_in = rows.rows.shape[1]
    sae = saelens_sae(job, d_in, kind, l1)
    settings = {"total_training_samples": job["steps"] * job["batch_size"], "train_batch_size_samples": job["batch_size"]}
    if job["tuned"]:
        settings |= {"lr": job["factor"] * 3e-4, "lr_warm_up_steps": job["steps"] // 20}
        settings["dead_feature_window"] = max(1, 2 * len(rows.rows) // job["batch_size"])
    # `lr_end` belongs to schedules that are not used, and must be given.
    config = SAETrainerConfig(**settings, lr_end=settings.get("lr", 3e-4) / 10)
    trainer = SAETrainer(config, sae, rows)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        # Else it takes a thousand batches to find it.
        trainer.activation_scaler.scaling_factor = float(d_in**0.5 / rows.rows.norm(dim=1).mean())
    trainer.fit()
    # As it writes itself for inference: norms folded, the threshold of BatchTopK per latent.
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        sae = SAE.load_from_disk(folder)
    t = sae.state_dict()
    b_in = t["b_dec"] if sae.cfg.apply_b_dec_to_input else 0 * t["b_dec"]
    k = job["k"] if kind == "topk" else 0
    return model_of(t["W_enc"].T, t["b_enc"], t["W_dec"], b_in, t["b_dec"], k, t.get("threshold")), sae


def dictionary_learning(job, rows):
    from dictionary_learning.trainers.top_k import TopKTrainer

    settings = {"steps": job["steps"], "activation_dim": rows.rows.shape[1], "dict_size": job["latents"], "k": job["k"]}
    settings |= {"layer": 0, "lm_name": "", "seed": job["seed"], "device": "cpu"}
    if job["tuned"]:
        lr = job["factor"] * default_lr(job["latents"])
        settings |= {"lr": lr, "warmup_steps": job["steps"] // 20}
    else:
        # Its schedule refuses a warm-up that is longer than the run.
        settings["warmup_steps"] = min(1000, job["steps"] - 1)
    trainer = TopKTrainer(**settings)
    if job["tuned"]:
        trainer.dead_feature_threshold = 2 * len(rows.rows)
    for step in range(job["steps"]):
        trainer.update(step, next(rows))
    ae = trainer.ae
    return model_of(ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec, ae.b_dec, job["k"]), ae


def sparsify(job, rows):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    import torch
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

    d_in = rows.rows.shape[1]

    class CachedRows(torch.nn.Module):
        """As much of a language model as the trainer asks for; its one layer gives the next batch."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()
            self.base_model, self.device = self, torch.device("cpu")
            self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

        def forward(self, input_ids):
            asked = input_ids.shape[1] == job["batch_size"]
            return self.layer(next(rows)[None] if asked else torch.zeros(1, 1, d_in))

    # One "sequence" of as many "tokens" as a batch has rows per step.
    class Sequences(torch.utils.data.Dataset):
        def __len__(self):
            return job["steps"]

        def __getitem__(self, _):
            return {"input_ids": torch.ones(job["batch_size"], dtype=torch.long)}

    with tempfile.TemporaryDirectory() as folder:
        settings = {"batch_size": 1, "hookpoints": ["layer"], "log_to_wandb": False, "save_dir": folder, "run_name": "run"}
        settings["init_seeds"] = [job["seed"]]
        if job["tuned"]:
            lr = job["factor"] * default_lr(job["latents"])
            settings |= {"optimizer": "adam", "lr": lr, "lr_warmup_steps": job["steps"] // 20}
            settings |= {"auxk_alpha": 1 / 32, "dead_feature_threshold": 2 * len(rows.rows)}
        trainer = Trainer(TrainConfig(SparseCoderConfig(num_latents=job["latents"], k=job["k"]), **settings), Sequences(), CachedRows())
        trainer.fit()
        # What it saved: its schedule-free optimizer exchanges the weights for that.
        coder = SparseCoder.load_from_disk(next(Path(folder).rglob("sae.safetensors")).parent)
    t = coder.state_dict()
    model = model_of(t["encoder.weight"], t["encoder.bias"], t["W_dec"], t["b_dec"], t["b_dec"], job["k"])
    return model, lambda x: coder(x).sae_out


def eager(job, rows):
    import torch_model

    model = torch_model.RelaxedTopK(rows.rows.shape[1], job["latents"], job["k"], tied=False)
    optimizer = torch_model.adam(model, 1e-3 * job["factor"])
    for _ in range(job["steps"]):
        optimizer.zero_grad(set_to_none=True)
        model.loss(next(rows), 1.0).backward()
        optimizer.step()
    found = model_of(model.w_enc, model.b_lat, model.w_dec, model.b_pre, model.b_pre, job["k"], None, torch_model.EPS_STD)
    return found, model


def worker(job):
    """One peer's run in this process, its weights to job["weights"] or its seconds per step to standard output."""
    import torch

    torch.set_num_threads(job["threads"])
    # Denormal numbers slow PyTorch down and change no result.
    torch.set_flush_denormal(True)
    torch.manual_seed(job["seed"])
    rows = Rows(torch.from_numpy(np.load(job["rows"])), job)
    train = {
        **{f"saelens-{kind}": lambda kind=kind: saelens(job, rows, kind) for kind in SAELENS},
        "dictionary_learning": lambda: dictionary_learning(job, rows),
        "sparsify": lambda: sparsify(job, rows),
        "eager": lambda: eager(job, rows),
    }
    model, forward = train[job["side"]]()
    # The weights must mean to `evaluate` what they mean to the peer itself.
    some = rows.rows[:64]
    with torch.no_grad():
        theirs = forward(some).numpy()
    here = reconstruct(model, some.numpy())[0]
    off = np.abs(theirs - here).max() / np.abs(theirs).max()
    # A score next to the k-th may fall on its other side by rounding, in a row or two.
    agree = np.isclose(theirs, here, rtol=1e-3, atol=1e-4 * np.abs(theirs).max()).all(1).mean()
    if agree < 0.95:
        sys.exit(f"{job['side']}: evaluate() and the peer itself differ, by up to {off:.2g} of the largest value")
    np.savez(job["weights"], **{name: value for name, value in model.items() if value is not None})
    clock, cpu = np.diff(rows.times, axis=0)[UNTIMED:].T
    rates = {"rows_per_second": job["batch_size"] / statistics.median(clock), "rows_per_cpu_second": job["batch_size"] / cpu.mean()}
    print("\n" + json.dumps(rates))


# ------------------------------------------------------------------------------------ running all sides


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(map(str, command))[:300]}` failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def run_peer(job, folder):
    """({rates}, model)"""
    weights = Path(folder) / "weights.npz"
    said = run([sys.executable, __file__, "--worker", json.dumps({**job, "weights": str(weights)})])
    saved = dict(np.load(weights))
    model = {"threshold": None, "row_eps": None, **saved, "k": int(saved["k"])}
    return last_json(said), model


def run_ours(args, job, extra, folder):
    """(summary.json, CPU seconds of the whole process, model)"""
    out = Path(folder) / "run"
    command = [args.sae, "train", job["data"], "--out", out, "--device", "cpu", "--quiet", "--early-stop", 0, "--split-seed", 0]
    command += ["--seed", job["seed"], "--threads", job["threads"], "--steps", job["steps"], "--batch-size", job["batch_size"]]
    command += ["--latents", job["latents"], "--k", job["k"], "--eval-every", job["steps"]]
    command += ["--eval-rows", 1, "--final-rows", job.get("final_rows", 1)]
    command += ["--lr", job["lr"]] if "lr" in job else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command + shlex.split(extra))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((out / "summary.json").read_text()), cpu, ours(out / "model.safetensors")


def speed_ours(args, job, extra):
    """Rates of `sae train` over a turn's steps: CPU time is that of a run less that of a shorter one."""
    found = []
    for steps in (UNTIMED, UNTIMED + 4 * args.speed_steps):
        with tempfile.TemporaryDirectory() as folder:
            found.append(run_ours(args, {**job, "steps": steps}, extra.format(steps=steps), folder))
    cpu = found[1][1] - found[0][1]
    rate = job["batch_size"] * 4 * args.speed_steps / cpu
    return {"rows_per_second": found[1][0]["rows_per_second"], "rows_per_cpu_second": rate}


class Results:
    """Lines of peers.jsonl: a key and what was found."""

    def __init__(self, path):
        self.path, self.known = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.known[json.dumps(record["key"], sort_keys=True)] = record

    def get(self, key, make):
        name = json.dumps(key, sort_keys=True)
        if name not in self.known:
            self.known[name] = {"key": key, **make()}
            with open(self.path, "a") as file:
                file.write(json.dumps(self.known[name]) + "\n")
            print(name, file=sys.stderr)
        return self.known[name]


def split_of(args, path, folder):
    """{"train": rows, "val": .., "test": ..}: the split that `sae` makes of the file with seed 0."""
    import torch
    import quality_vs_torch

    out = Path(folder) / "split"
    run([args.sae, "train", path, "--out", out, "--latents", 64, "--k", 4, "--steps", 1, "--split-seed", 0, "--quiet", "--device", "cpu"])
    ids, rows = bench_common.load_rows(path)
    splits = quality_vs_torch.split_rows(out / "splits.tsv", ids, torch.from_numpy(rows))
    return {name: np.ascontiguousarray(part.numpy()) for name, part in splits.items()}


def default_lr(latents):
    """Gao et al. 2024's, which dictionary_learning, sparsify with Adam and `--lr auto` take."""
    return 2e-4 / (latents / 2**14) ** 0.5


def configurations(args):
    given = args.config or ["default=", "topk=--preset topk"]
    return dict(text.split("=", 1) for text in given)


def measure(args, results, name, path):
    with tempfile.TemporaryDirectory() as folder:
        splits = split_of(args, path, folder)
        cached = Path(folder) / "train.npy"
        np.save(cached, splits["train"])
        latents = args.latents or 8 * splits["train"].shape[1]
        base = {"latents": latents, "k": args.k, "batch_size": args.batch_size, "threads": args.threads, "tuned": False, "factor": 1}
        files = {"data": path, "rows": str(cached)}
        sides = list(configurations(args)) + args.peers

        def quality(side, seed, tuned, factor):
            key = {"kind": "quality", "data": name, "side": side, "seed": seed, "steps": args.steps, "tuned": tuned}
            key |= {"factor": factor, "latents": latents, "k": args.k, "batch_size": args.batch_size}
            job = {**base, **files, "side": side, "seed": seed, "steps": args.steps, "tuned": tuned, "factor": factor}

            def make():
                if side in PEERS:
                    rates, model = run_peer(job, folder)
                else:
                    if tuned:
                        job["lr"] = factor * default_lr(latents)
                    job["final_rows"] = "all"
                    with tempfile.TemporaryDirectory() as own:
                        rates, _, model = run_ours(args, job, configurations(args)[side], own)
                found = evaluate(model, splits)
                # The weights must mean here what they mean to `sae`.
                if side not in PEERS and not np.isclose(rates["test"]["fvu"], found["test"]["fvu"], rtol=1e-3):
                    sys.exit(f"{side}: test FVU {found['test']['fvu']} here, {rates['test']['fvu']} in summary.json")
                return {"rows_per_second": rates["rows_per_second"], **found}

            return results.get(key, make)

        # The two phases of the default; all steps of another configuration.
        phases = {}
        for side, extra in configurations(args).items():
            if side == "default":
                phases["default, in its warm-up"] = extra + " --anneal-steps {steps}"
                phases["default, after it"] = extra + " --relaxation none"
            else:
                phases[side] = extra

        def speed(side, round_number):
            m = args.speed_latents or latents
            key = {"kind": "speed", "data": name, "side": side, "round": round_number, "latents": m, "k": args.k}
            key |= {"batch_size": args.batch_size}
            job = {**base, **files, "latents": m, "side": side, "seed": 0}

            def make():
                if side in PEERS:
                    return run_peer({**job, "steps": UNTIMED + 1 + args.speed_steps}, folder)[0]
                return speed_ours(args, job, phases[side])

            return results.get(key, make)

        timed = list(phases) + args.peers
        for round_number in range(args.rounds):
            # Who goes first changes with the round.
            for side in timed[round_number % len(timed) :] + timed[: round_number % len(timed)]:
                speed(side, round_number)
        for seed in args.seeds if args.steps else []:
            for side in sides:
                # A literal model is there for its speed: see quality_vs_torch.py.
                if side == "eager":
                    continue
                quality(side, seed, False, 1)
                # The default was tuned when it was chosen.
                if side != "default":
                    for factor in args.factors:
                        quality(side, seed, True, factor)


# ------------------------------------------------------------------------------------ the table


def speed_table(records):
    """Markdown: a line per side that was timed."""
    sides = list(dict.fromkeys(r["key"]["side"] for r in records))
    rounds = lambda side, rate: {r["key"]["round"]: r[rate] for r in records if r["key"]["side"] == side}
    body = []
    for side in sides:
        clock, cpu = (list(rounds(side, rate).values()) for rate in ("rows_per_second", "rows_per_cpu_second"))
        line = [side, *(f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})" for rates in (clock, cpu))]
        for mine, rate in itertools.product(("default, in its warm-up", "default, after it"), ("rows_per_second", "rows_per_cpu_second")):
            first, second = rounds(mine, rate), rounds(side, rate)
            both = [first[n] / second[n] for n in first.keys() & second.keys()]
            line.append(f"{statistics.median(both):.1f} ({min(both):.1f} to {max(both):.1f})" if both and side != mine else "")
        body.append(line)
    header = ["side", "rows/s", "rows per CPU second", "default in its warm-up / it", "the same, CPU", "default after it / it", "the same, CPU"]
    return bench_common.markdown_table(header, body)


def quality_table(records):
    """Markdown: a line per side that was trained."""
    sides = dict.fromkeys(r["key"]["side"] for r in records)
    body = [[side, *cells(of(records, side, False)), *tuned_cells(of(records, side, True))] for side in sides]
    header = ["side", "val FVU", "test FVU", "L0", "dead"]
    return bench_common.markdown_table(header + ["tuned: factor"] + header[1:], body)


def of(records, side, tuned):
    return [r for r in records if r["key"]["side"] == side and r["key"]["tuned"] == tuned]


def cells(runs):
    """Means over the seeds."""
    if not runs:
        return [""] * 4
    mean = lambda get: statistics.fmean(get(r) for r in runs)
    fvu = [f"{mean(lambda r: r[split]['fvu']):.4f}" for split in ("val", "test")]
    return [*fvu, f"{mean(lambda r: r['test']['l0']):.1f}", f"{100 * mean(lambda r: r['dead']):.1f} %"]


def tuned_cells(runs):
    """The factor of the learning rate with the best mean validation FVU; a run that diverged has none, and one with 1.25 k
    active latents or more counts only where all have."""
    by_factor = {}
    for r in [r for r in runs if r["val"]["l0"] < 1.25 * r["key"]["k"]] or runs:
        by_factor.setdefault(r["key"]["factor"], []).append(r)
    score = lambda item: statistics.fmean(r["val"]["fvu"] if np.isfinite(r["val"]["fvu"]) else np.inf for r in item[1])
    if not by_factor:
        return [""] * 5
    factor, best = min(by_factor.items(), key=score)
    return [f"{factor:g}", *cells(best)]


def write_table(args, results):
    info = bench_common.machine(args.threads)
    records = list(results.known.values())
    parts = ["# Beside the peers' own trainers\n", f"{bench_common.machine_line(info)}; {versions()}.\n"]
    paragraphs = __doc__.split("\n\n")[2:-1]
    if not any(r["key"]["kind"] == "speed" for r in records):
        paragraphs = [p for p in paragraphs if not p.startswith("Speed:")] + ["Speed: not measured."]
    parts.append("\n\n".join(paragraphs) + "\n")
    groups = {}
    for r in records:
        sizes = tuple(r["key"].get(e) for e in ("kind", "data", "latents", "k", "batch_size", "steps"))
        groups.setdefault(sizes, []).append(r)
    for (kind, name, m, k, n, steps), mine in sorted(groups.items(), key=str):
        parts.append(f"## {kind.capitalize()}, {name}: M = {m}, k = {k}, {n} rows per step\n")
        if kind == "speed":
            parts.append(f"Rounds: {1 + max(r['key']['round'] for r in mine)}; median (range).\n\n{speed_table(mine)}\n")
        else:
            seeds = sorted({r["key"]["seed"] for r in mine})
            parts.append(f"{steps} steps, seeds {seeds}.\n\n{quality_table(mine)}\n")
    text = "\n".join(parts)
    (Path(args.out) / "peers.md").write_text(text)
    print(text)


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("sae-lens", "dictionary-learning", "eai-sparsify"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main():
    args = arguments()
    if args.worker:
        return worker(json.loads(args.worker))
    if not args.out or not (args.table or (args.sae and args.data)):
        sys.exit("usage: peers.py --sae target/release/sae --data NAME=FILE.h5 --out DIR, or --table --out DIR")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    results = Results(Path(args.out) / "peers.jsonl")
    if not args.table:
        for given in args.data:
            name, path = given.split("=", 1)
            measure(args, results, name, path)
    write_table(args, results)


if __name__ == "__main__":
    main()
