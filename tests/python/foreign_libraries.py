"""Exports a model in every format, loads it with the libraries themselves, and compares codes and reconstructions
with the model's own formulas in float64. Outside the quick suite: it needs the libraries.

    python3 -m venv V && V/bin/pip install torch h5py sae-lens eai-sparsify dictionary-learning && V/bin/pip install --no-deps --ignore-requires-python esm
    V/bin/python tests/python/foreign_libraries.py SAE MODEL DATA.h5 [FOLDER]

SAE is the binary, MODEL a run folder or model.safetensors, DATA one 1-D dataset an id. InterProt and OpenAI have no
wheel: where their classes cannot be imported, their forward passes are written out here, from their sources, and the
line says so. Exits with 1 if anything is further than 1e-5 away or a library is missing.
"""
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import torch
from safetensors import safe_open
from safetensors.torch import load_file

sae, model, data = sys.argv[1:4]
folder = Path(sys.argv[4] if len(sys.argv) > 4 else tempfile.mkdtemp())
failed = False

with h5py.File(data) as f:
    x = torch.stack([torch.from_numpy(f[k][()]).float() for k in sorted(f)])
path = Path(model)
with safe_open(path / "model.safetensors" if path.is_dir() else path, "pt") as f:
    cfg = json.loads(f.metadata()["architecture"])
    w_enc, w_dec, b_pre, b_lat = (f.get_tensor(n).double() for n in ("w_enc", "w_dec", "b_pre", "b_lat"))
    threshold = f.get_tensor("threshold").double() if cfg["inference"] == "threshold" else None


def normalised(x):
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


def ours(x):
    """Codes, reconstruction, and for each row the gap between the last score taken and the first left out, or between a score
    and its threshold."""
    x = x.double()
    rows, mean, std = normalised(x) if cfg["normalize"] else (x, 0.0, 1.0)
    z = (rows - b_pre) @ w_enc.T + b_lat
    if threshold is not None:
        h = z * (z > threshold)
        return h, (h @ w_dec + b_pre) * std + mean, (z - threshold).abs().min(1).values
    k, gap = z.shape[1], torch.full((len(x),), torch.inf, dtype=torch.float64)
    if cfg["inference"] == "topk":
        k = cfg["k"]
        top = z.topk(k + 1).values
        gap = torch.where(top[:, -1] > 0, top[:, -2] - top[:, -1], torch.inf)
    values, at = z.topk(k)
    h = torch.zeros_like(z).scatter_(1, at, values.relu())
    return h, (h @ w_dec + b_pre) * std + mean, gap


codes, recon, gap = ours(x)
# Where two scores, or a score and a threshold, differ by less than float32 can tell, which one is active is not the format's
# doing.
clear = gap > 1e-5 * codes.abs().max()


def far(got, want):
    got = got.double()
    return ((got - want)[clear].abs().max() / want[clear].abs().max()).item() if got.isfinite().all() else float("nan")


def report(name, what, got_codes, got_recon):
    global failed
    c, r = far(got_codes, codes), far(got_recon, recon)
    good = c <= 1e-5 and r <= 1e-5
    failed |= not good
    print(f"{name:<20} {what:<58} codes {c:.1e}  reconstruction {r:.1e}  {'ok' if good else 'TOO FAR'}", flush=True)


def version(package):
    return f"{package} {importlib.metadata.version(package)}"


def by_hand(encode, decode):
    """What the export's warning asks for where a library does not normalise."""
    if not cfg["normalize"]:
        h = encode(x)
        return h, decode(h)
    rows, mean, std = normalised(x)
    h = encode(rows)
    return h, decode(h) * std + mean


def saelens(where):
    global failed
    from sae_lens import SAE
    lib = SAE.load_from_disk(str(where))
    h = lib.encode(x)
    report("saelens", version("sae-lens"), h, lib.decode(h))
    from sae_lens.constants import SPARSITY_FILENAME
    from sae_lens.training.sae_trainer import _log_feature_sparsity
    logs = load_file(where / SPARSITY_FILENAME)["sparsity"]
    fired = (codes > 0).double().mean(0)
    # A row whose k-th score is not clear may count for either of two latents; so may scores around 0 with relu.
    unclear = ((~clear).sum() + (codes[codes > 0] < 1e-5 * codes.max()).sum()).item() / len(x)
    miss = (10 ** logs.double() - 10 ** _log_feature_sparsity(fired).double()).abs().max().item()
    good = logs.shape == fired.shape and miss <= 1e-5 + unclear
    failed |= not good
    print(f"{'':<20} {SPARSITY_FILENAME}: rates differ by {miss:.1e}  {'ok' if good else 'TOO FAR'}")


def sparsify(where):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its Triton decoder needs a GPU; this is its own one in PyTorch
    from sparsify import SparseCoder
    lib = SparseCoder.load_from_disk(where)

    def encode(rows):
        values, at, _ = lib.encode(rows)
        return torch.zeros(len(rows), lib.num_latents).scatter_(1, at, values)

    def decode(h):
        values, at = h.topk(lib.cfg.k)
        return lib.decode(values, at)

    report("sparsify", version("eai-sparsify") + ", rows normalised by hand" * cfg["normalize"], *by_hand(encode, decode))


def dictionary_learning(where):
    torch.load(where / "ae.pt", weights_only=True)
    try:
        import nnsight  # noqa: F401
    except ImportError:  # only its training from language models needs it; importing the package asks for it
        import types
        stub = types.ModuleType("nnsight")
        stub.LanguageModel = object
        sys.modules["nnsight"] = stub
    from dictionary_learning.utils import load_dictionary
    lib, _ = load_dictionary(str(where), "cpu")
    what = version("dictionary-learning") + f" {type(lib).__name__}" * (threshold is not None) + ", rows normalised by hand" * cfg["normalize"]
    if cfg["inference"] == "relu":
        # As the export's warning says: load_dictionary scales decoder rows to norm 1, and codes by their norms.
        h, y = by_hand(lib.encode, lib.decode)
        report("dictionary-learning", "load_dictionary, codes over norms of w_dec", h / w_dec.norm(dim=1), y)
        from dictionary_learning import AutoEncoder
        lib = AutoEncoder.from_pretrained(where / "ae.pt", normalize_decoder=False)
    report("dictionary-learning", what, *by_hand(lib.encode, lib.decode))


def top_k(z, k):
    values, at = z.topk(k)
    return torch.zeros_like(z).scatter_(1, at, values.relu())


def interprot(where):
    state = load_file(where / "interprot.safetensors")
    k = cfg["k"] if cfg["inference"] == "topk" else len(b_lat)
    try:
        from interprot.sae_model import SparseAutoencoder
        lib = SparseAutoencoder(x.shape[1], len(b_lat), k=k)
        lib.load_state_dict(state)
        return report("interprot", "the library's SparseAutoencoder", lib.get_acts(x), lib.forward_val(x))
    except ImportError:
        pass
    assert {n: tuple(t.shape) for n, t in state.items()} == {
        "w_enc": (x.shape[1], len(b_lat)), "w_dec": (len(b_lat), x.shape[1]), "b_enc": (len(b_lat),),
        "b_pre": (x.shape[1],), "stats_last_nonzero": (len(b_lat),)}
    assert state["stats_last_nonzero"].dtype == torch.int64
    rows, mean, std = normalised(x)
    h = top_k((rows - state["b_pre"]) @ state["w_enc"] + state["b_enc"], k)
    report("interprot", "its forward written out, no wheel", h, (h @ state["w_dec"] + state["b_pre"]) * std + mean)


def openai(where):
    state = torch.load(where / "autoencoder.pt", weights_only=True)
    try:
        from sparse_autoencoder.model import Autoencoder
        lib = Autoencoder.from_state_dict(state)
        lib.normalize = cfg["normalize"]
        h, info = lib.encode(x)
        return report("openai", "the library's Autoencoder", h, lib.decode(h, info))
    except ImportError:
        pass
    rows, mean, std = normalised(x) if cfg["normalize"] else (x, 0.0, 1.0)
    z = torch.nn.functional.linear(rows - state["pre_bias"], state["encoder.weight"], state["latent_bias"])
    h = top_k(z, state["activation_state_dict"]["k"]) if state["activation"] == "TopK" else z.relu()
    y = torch.nn.functional.linear(h, state["decoder.weight"]) + state["pre_bias"]
    report("openai", "its forward written out, no wheel", h, y * std + mean)


def esmc(where):
    # The file alone: importing the package asks for all that ESMC itself needs.
    at = importlib.util.find_spec("esm")
    if at is None:
        raise ImportError("esm")
    spec = importlib.util.spec_from_file_location("esmc_sae", Path(at.submodule_search_locations[0], "models/esmc/sae.py"))
    sys.modules["esmc_sae"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lib = module.EsmcSaeModel.from_pretrained(where)
    layer, = lib.layers.values()
    h = lib(x).feature_magnitudes
    # It keeps its reconstruction to itself, and says how far that is from the normalised row.
    rows, mean, std = normalised(x)
    y = h @ layer.W_dec + layer.b_dec
    loss = (y - rows).pow(2).mean(1)
    assert torch.allclose(lib(x).reconstruction_loss, loss, rtol=1e-4), "another reconstruction"
    shift = (layer.b_dec.double() - b_pre).mean()
    report("esmc", f"{version('esm')}, its reconstruction less {shift.item():.4f}", h, (y - shift) * std + mean)
    fired = (h > 0).sum(0)
    seen = fired > 0
    miss = ((layer.max - h.max(0).values).abs() / layer.max)[seen].max().item()
    unclear = (~clear).sum().item() / len(x)
    rates = ((-layer.idf.double()).exp() - fired.double() / len(x)).abs()[seen].max().item()
    good = miss <= 1e-5 and rates <= 1e-5 + unclear and (layer.max[~seen] == 1).all()
    global failed
    failed |= not good
    print(f"{'':<20} max differs by {miss:.1e}, the rates of idf by {rates:.1e}  {'ok' if good else 'TOO FAR'}")


print(f"{version('torch')}, Python {sys.version.split()[0]}, {subprocess.check_output([sae, '--version'], text=True).strip()}")
kind = cfg["activation"] if threshold is not None else cfg["inference"]
print(f"{len(x)} rows, D = {x.shape[1]}, M = {len(b_lat)}, {kind}, k = {cfg['k']}, normalize = {cfg['normalize']}, "
      f"tied = {cfg['tied']}; {int((~clear).sum())} rows left out whose active latents are not clear in float32")
torch.set_grad_enabled(False)
for name, check in (("saelens", saelens), ("sparsify", sparsify), ("dictionary-learning", dictionary_learning),
                    ("interprot", interprot), ("openai", openai), ("esmc", esmc)):
    where = folder / name
    if name in ("interprot", "esmc") and not cfg["normalize"]:
        print(f"{name:<20} always normalises: not for this model, as the export {'warns' if name == 'interprot' else 'says'}")
        continue
    if threshold is not None and name not in ("saelens", "dictionary-learning"):
        print(f"{name:<20} has no thresholds: not for this model, as the export says")
        continue
    rates = ["--data", data] if name in ("saelens", "esmc") else []
    rates += ["--layer", "3"] if name == "esmc" else []
    subprocess.run([sae, "export", model, "--format", name, "-o", where, "--overwrite", "--quiet", *rates], check=True,
                   stdout=subprocess.DEVNULL)
    try:
        check(where)
    except ImportError as e:
        failed = True
        print(f"{name:<20} NOT RUN: {e}")
sys.exit(failed)
