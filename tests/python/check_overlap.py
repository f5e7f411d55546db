"""Works the figures of `sae overlap` out again from the codes of `sae encode`, in NumPy with its own random numbers.

usage: check_overlap.py CODES.h5 LABELS.tsv OVERLAP.json LATENTS.tsv

One row an id, codes of fixed k; OVERLAP.json is what `sae overlap --json` printed, LATENTS.tsv its --out. Figures of the
groups as they are must agree exactly (shares, counts) or to float32 sums (means, L0); those of shuffles to the error of
so many random draws.
"""
import csv
import json
import sys
from itertools import combinations

import h5py
import numpy as np
import scipy.sparse

codes, labels, overlap, latents = sys.argv[1:]
with h5py.File(codes) as f:
    ids, (n, k), m = list(f["ids"].asstr()[:]), f["values"].shape, f.attrs["width"]
    x = scipy.sparse.csr_matrix((f["values"][:].ravel(), f["indices"][:].ravel(), np.arange(n + 1) * k), (n, m))
x.eliminate_zeros()
fires = (x > 0).astype(np.float64)
got = json.load(open(overlap))
table = list(csv.DictReader(open(latents), delimiter="\t"))
cells = {row["id"]: row[got["column"]]
         for row in csv.DictReader(open(labels), delimiter="\t")}
own = [{v.strip() for v in cells.get(i, "").split(";")} - {"", "NA", "N/A", "NaN", "nan"} for i in ids]

names = [g["name"] for g in got["groups"]]
member = np.array([[name in labels for labels in own] for name in names])
if got["exclusive"]:
    member &= member.sum(0) < 2
threshold, least = got["threshold"], got["min_activation"]


def active(rows):
    """Of groups, as a (groups, rows) matrix of 0 and 1: shares, means, and whether each latent is active (groups, M)."""
    size = rows.sum(1, keepdims=True)
    share, mean = (rows @ fires) / size, (rows @ x) / size
    return share, mean, (share > threshold) & (mean > least)


def figures(a, b):
    """Of the active latents (shuffles, M) of two groups: what is told of a pair."""
    both, either = (a & b).sum(1), (a | b).sum(1)
    with np.errstate(invalid="ignore"):
        return {"active_a": a.sum(1), "active_b": b.sum(1), "shared": both, "jaccard": both / either,
                "share_of_a": both / a.sum(1), "share_of_b": both / b.sum(1)}


share, mean, on = active(member.astype(np.float64))
for j, row in enumerate(table):
    assert int(row["latent"]) == j
    for g, name in enumerate(names):
        assert float(row[f"share_{name}"]) == share[g, j], (j, name)
        assert abs(float(row[f"mean_{name}"]) - mean[g, j]) <= 1e-6 * mean[g, j], (j, name)
    assert row["active_in"] == ";".join(n for n, a in zip(names, on[:, j]) if a), j
    class_ = {0: "none", 1: "specific", len(names): "shared"}.get(on[:, j].sum(), "some")
    assert row["class"] == class_, (j, row["class"], class_)
assert len(table) == m
for g, group in enumerate(got["groups"]):
    assert group["ids"] == group["rows"] == member[g].sum()
    assert abs(group["l0"] - fires[member[g]].sum() / member[g].sum()) < 1e-9
    assert (group["active"], group["specific"]) == (on[g].sum(), (on[g] & (on.sum(0) == 1)).sum())
assert got["shared_by_all"] == on.all(0).sum()
counts = {"in_groups": sum(bool(s & set(names)) for s in own), "in_several": sum(len(s & set(names)) > 1 for s in own),
          "other_labels": sum(bool(s) and not s & set(names) for s in own),
          "unlabelled": sum(not s and i in cells for i, s in zip(ids, own)),
          "not_in_table": sum(i not in cells for i in ids)}
assert got["ids"] == counts, (got["ids"], counts)

random, shuffles, worst = np.random.default_rng(7), 4000, 0.0
pairs = {(p["a"], p["b"]): p for p in got["pairs"]}
assert len(pairs) == len(names) * (len(names) - 1) // 2
for a, b in combinations(range(len(names)), 2):
    pair = pairs[names[a], names[b]]
    rows = np.flatnonzero(member[a] | member[b])
    dealt = np.zeros((2, shuffles, len(rows)), dtype=np.float32)
    for s in range(shuffles):
        dealt[:, s] = member[[a, b]][:, rows[random.permutation(len(rows))]]
    size = dealt.sum(2, keepdims=True).astype(np.float64)
    counts_of, sums_of = fires[rows], x[rows].astype(np.float64)
    on_shuffled = [(np.asarray(d @ counts_of) / s > threshold) & (np.asarray(d @ sums_of) / s > least)
                   for d, s in zip(dealt, size)]
    observed, shuffled = figures(on[[a]], on[[b]]), figures(*on_shuffled)
    for name, values in shuffled.items():
        told, seen = pair[name], observed[name][0]
        assert told["observed"] is None and np.isnan(seen) or told["observed"] == seen, (name, told, seen)
        values = values[~np.isnan(values)]
        # Five standard errors of the difference of two means.
        error = values.std() * np.sqrt(1 / len(values) + 1 / got["permutations"])
        miss = abs(told["shuffled_mean"] - values.mean())
        assert miss <= 5 * error + 1e-12, (names[a], names[b], name, told, values.mean(), error)
        worst = max(worst, miss / error if error else 0.0)
        # The ends of the interval: the share of my shuffles below each is 2.5 % and 97.5 % to five standard errors
        # (ties count as either).
        five = 5 * np.sqrt(0.025 * 0.975 * (1 / len(values) + 1 / got["permutations"]))
        low, high = told["shuffled_low"], told["shuffled_high"]
        assert (values < low - 1e-12).mean() <= 0.025 + five and (values <= low + 1e-12).mean() >= 0.025 - five, name
        assert (values < high - 1e-12).mean() <= 0.975 + five and (values <= high + 1e-12).mean() >= 0.975 - five, name
        tails = [(1 + tail) / (1 + len(values)) for tail in ((values <= seen).sum(), (values >= seen).sum())]
        p = min(1.0, 2 * min(tails))
        error = 2 * np.sqrt(p / 2 * (1 - p / 2) * (1 / len(values) + 1 / got["permutations"]))
        assert abs(told["p"] - p) <= 5 * error + 2 / (1 + got["permutations"]), (name, told["p"], p)
print(f"overlap: {len(names)} groups, {m} latents and {len(pairs)} pairs agree; "
      f"means over shuffles within {worst:.1f} standard errors")
