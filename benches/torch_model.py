"""The two models as a few lines of eager PyTorch: the yardstick of the other benches.

Nothing here is clever on purpose. Notation: N rows, D inputs, M latents, k active latents;
w_enc (M, D), b_lat (M), w_dec (M, D), b_pre (D). A tied model has no w_dec of its own.

    python torch_model.py --check DIR     compares with the golden tensors in DIR, in float64
"""

import argparse
import ast
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

EPS_STD = 1e-5
EPS_LOG = 1e-9


def hard_topk(scores, k):
    """relu(scores) on the k largest scores of each row, else 0."""
    values, indices = torch.topk(scores, k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, indices, torch.relu(values))


def relaxed_topk(z, k, t, tau, uniform=None):
    """(1 - t) * softmax((relu(z) + gumbel) / tau) * sum(relu(z)) + t * hard top-k, row by row.

    From t = 1 on the soft branch is skipped: it would be multiplied by 0.
    """
    hard = hard_topk(z, k)
    if t >= 1.0:
        return hard
    r = torch.relu(z)
    if uniform is None:
        uniform = torch.rand_like(z)
    gumbel = -torch.log(-torch.log(uniform + EPS_LOG) + EPS_LOG)
    p = torch.softmax((r + gumbel) / tau, dim=-1)
    soft = p * r.sum(dim=-1, keepdim=True)
    return (1.0 - t) * soft + t * hard


class RelaxedTopK(nn.Module):
    """Relaxed top-k autoencoder; `forward` gives the reconstruction at warm-up fraction `t`."""

    def __init__(self, d_in, n_latents, k, tied=True, normalize=True, tau_start=1.0, tau_end=0.05):
        super().__init__()
        self.k, self.normalize = k, normalize
        self.tau_start, self.tau_end = tau_start, tau_end
        # As nn.Linear draws its weights: uniform in +-1/sqrt(fan_in). The biases start at 0.
        self.w_enc = nn.Parameter(torch.empty(n_latents, d_in).uniform_(-1, 1) / math.sqrt(d_in))
        self.b_lat = nn.Parameter(torch.zeros(n_latents))
        self.b_pre = nn.Parameter(torch.zeros(d_in))
        self.w_dec = None
        if not tied:
            w_dec = torch.empty(n_latents, d_in).uniform_(-1, 1) / math.sqrt(n_latents)
            self.w_dec = nn.Parameter(w_dec)

    def forward(self, x, t=1.0, uniform=None, keep=None):
        """`keep`, a dict, receives z, h and the codes' graph nodes (for --check and for evaluation)."""
        mu, std, inner = 0.0, 1.0, x
        if self.normalize:
            mu = x.mean(dim=-1, keepdim=True)
            std = x.std(dim=-1, keepdim=True, unbiased=True)
            inner = (x - mu) / (std + EPS_STD)
        tau = self.tau_start * (1.0 - t) + self.tau_end * t
        z = F.linear(inner - self.b_pre, self.w_enc, self.b_lat)
        h = relaxed_topk(z, self.k, t, tau, uniform)
        if keep is not None:
            keep.update(z=z, h=h)
        w_dec = self.w_enc if self.w_dec is None else self.w_dec
        return (h @ w_dec + self.b_pre) * std + mu

    def loss(self, x, t=1.0, uniform=None, keep=None):
        y = self(x, t, uniform, keep)
        if keep is not None:
            keep["y"] = y
        return ((y - x) ** 2).mean()


class SparseL1(nn.Module):
    """Sparse L1 + top-k autoencoder. The decoder starts as the encoder; tied, it stays the encoder."""

    def __init__(self, d_in, n_latents, k, tied=True):
        super().__init__()
        self.k = k
        self.w_enc = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_latents, d_in), gain=0.1))
        self.b_lat = nn.Parameter(torch.zeros(n_latents))
        self.w_dec = None if tied else nn.Parameter(self.w_enc.detach().clone())

    def forward(self, x, keep=None):
        r = torch.relu(F.linear(x, self.w_enc, self.b_lat))
        h = hard_topk(r, self.k)
        if keep is not None:
            keep.update(h=h)
        return h @ (self.w_enc if self.w_dec is None else self.w_dec)

    def loss(self, x, beta, l1=0.1, keep=None):
        keep = {} if keep is None else keep
        y = self(x, keep)
        keep.update(y=y, mse=((y - x) ** 2).mean(), l1=keep["h"].abs().mean())
        return keep["mse"] + beta * l1 * keep["l1"]


def adam(model, lr, fused=False):
    """Adam as in the paper, with PyTorch's defaults."""
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=fused or None)


# ---------------------------------------------------------------------------------- the check


def load_golden(path):
    """Tensors in float64 and the metadata, its values parsed."""
    from safetensors import safe_open

    def parse(text):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    with safe_open(path, framework="pt") as file:
        meta = {name: parse(value) for name, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name).double() for name in file.keys()}, meta


def set_parameters(model, tensors):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
            else:
                parameter.zero_()  # the trajectories: "b_pre and b_lat start at 0"


def worst(pairs, rtol):
    """Largest |ours - golden| / max |golden| over the pairs, in units of the tolerance."""
    result = (0.0, "")
    for name, ours, golden in pairs:
        ours = torch.as_tensor(ours).detach().double().reshape(golden.shape)
        scale = golden.abs().max().clamp_min(1e-300)
        error = ((ours - golden).abs().max() / scale).item() / rtol
        if not error <= result[0]:  # a NaN is the worst of all
            result = (error, name)
    return result


def check_pass(tensors, meta):
    """One forward and backward pass."""
    n_latents, d_in = tensors["w_enc"].shape
    keep = {}
    if meta["model"] == "relaxed-topk":
        model = RelaxedTopK(d_in, n_latents, meta["k"], meta["tied"], meta["normalize"]).double()
        set_parameters(model, tensors)
        loss = model.loss(tensors["x"], meta["t"], tensors["uniform"], keep)
    else:
        model = SparseL1(d_in, n_latents, meta["k"], meta["tied"]).double()
        set_parameters(model, tensors)
        loss = model.loss(tensors["x"], meta["beta"], meta["l1"], keep)
    for node in (keep.get("z"), keep["h"]):
        if node is not None:
            node.retain_grad()
    loss.backward()
    pairs = [(name, keep[name], tensors[name]) for name in keep if name in tensors]
    pairs.append(("loss", loss, tensors["loss"]))
    for name, golden in tensors.items():
        if name in ("grad_z", "grad_h"):
            pairs.append((name, keep[name[5:]].grad, golden))
        elif name.startswith("grad_"):
            pairs.append((name, getattr(model, name[5:]).grad, golden))
    return [worst(pairs, 1e-9)]


def check_trajectory(tensors, meta):
    """A few Adam steps. Final parameters are stored in float32, which is all that they can agree to."""
    n_latents, d_in = tensors["w_enc"].shape
    model = RelaxedTopK(d_in, n_latents, meta["k"], meta["tied"]).double()
    set_parameters(model, tensors)
    optimizer = adam(model, meta["lr"])
    losses, norms = [], []
    for step in range(meta["steps"]):
        t = min(step, meta["warmup"]) / meta["warmup"]
        optimizer.zero_grad()
        loss = model.loss(tensors["x"], t, tensors["uniform"][step])
        loss.backward()
        limit = math.inf if meta["clip"] is None else meta["clip"]
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), limit).item())
        losses.append(loss.item())
        optimizer.step()
    exact = [
        ("losses", torch.tensor(losses, dtype=torch.double), tensors["losses"]),
        ("grad_norms", torch.tensor(norms, dtype=torch.double), tensors["grad_norms"]),
    ]
    final = [(n, p, tensors["final_" + n]) for n, p in model.named_parameters()]
    return [worst(exact, 1e-9), worst(final, 1e-7)]


def check(folder):
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        sys.exit(f"{folder}: no *.safetensors in it; give the folder of golden tensors")
    failed = 0
    for path in paths:
        tensors, meta = load_golden(path)
        results = (check_trajectory if "losses" in tensors else check_pass)(tensors, meta)
        error, name = max(results)
        bad = not all(e <= 1.0 for e, _ in results)
        failed += bad
        print(f"{'FAIL' if bad else 'ok':4}  {path.name}: at most {error:.1e} of the tolerance ({name})")
    if failed:
        sys.exit(f"{failed} of {len(paths)} files disagree")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="DIR", required=True, help="folder of golden tensors")
    check(parser.parse_args().check)


if __name__ == "__main__":
    main()
