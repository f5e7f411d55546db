"""Checks `sae features` beside scikit-learn and SciPy, from the codes that `sae encode` writes.

usage: check_features.py MODEL CODES.h5 FEATURES.tsv [LABELS.tsv ASSOCIATIONS.tsv]

Codes are those of a model with a fixed k; ids are rows. Every line of the tables is worked out again: thresholds with
precision_recall_curve on the first half of the ids, precision, recall, F1 and AUROC with scikit-learn on the second,
p with scipy.stats.fisher_exact, q with scipy.stats.false_discovery_control, neighbours with NumPy.
"""
import csv
import os
import sys
from urllib.parse import unquote

import h5py
import numpy as np
import scipy.sparse
import scipy.stats
import sklearn
import xxhash
from safetensors import safe_open
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support, roc_auc_score

# Most of the time would go to checks of arguments.
sklearn.set_config(assume_finite=True, skip_parameter_validation=True)

HALF_SEED = 0x6C6162656C732F32
UNKNOWN = {"", "NA", "N/A", "NaN", "nan"}


def table(path):
    with open(path, encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def close(what, got, want, tolerance):
    assert abs(got - want) <= tolerance * max(abs(want), 1e-300), (what, got, want)


def check_features(lines, ids, codes, w_dec):
    n, m = codes.shape
    assert [int(line["latent"]) for line in lines] == list(range(m))
    unit = w_dec / np.maximum(np.linalg.norm(w_dec, axis=1, keepdims=True), 1e-30)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    alive = 0
    for j, line in enumerate(lines):
        column = codes[:, [j]].toarray().ravel()
        active = column[column > 0]
        assert int(line["active_rows"]) == len(active), j
        close((j, "rate"), float(line["firing_rate"]), len(active) / n, 1e-12)
        if len(active):
            alive += 1
            close((j, "mean"), float(line["mean_activation"]), active.astype(np.float64).mean(), 1e-12)
            assert np.float32(line["max_activation"]) == active.max(), j
            top, values = [unquote(i) for i in line["top_ids"].split(";")], np.float32(line["top_activations"].split(";"))
            want = np.sort(active)[::-1][: len(top)]
            assert len(top) == min(10, len(active)) and (values == want).all(), j
            assert all(column[ids.index(i)] == v for i, v in zip(top, values)), j
        else:
            assert line["top_ids"] == line["mean_activation"] == line["max_activation"] == "", j
        near = np.array(line["neighbour_cosines"].split(";"), float)
        # Unit rows and sums of D products, rounded to float32.
        assert np.abs(near - np.sort(cosines[j])[::-1][: len(near)]).max() < 1e-5, j
        assert np.abs(near - cosines[j][np.array(line["neighbours"].split(";"), int)]).max() < 1e-5, j
    print(f"features: {m} latents, {alive} active on {n} rows: as NumPy has them")


def best_threshold(truth, values):
    """Halfway from the observed activation with the highest F1 (the highest such) down to the next, and that F1.

    None where no true row is active.
    """
    if not (values[truth] > 0).any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, values)
    keep = thresholds > 0
    precision, recall, thresholds = precision[:-1][keep], recall[:-1][keep], thresholds[keep]
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    best = thresholds[f1 > f1.max() * (1 - 1e-12)].max()
    following = values[values < best].max(initial=0)
    return np.float32(following + (best - following) / np.float32(2)), f1.max()


def check_best(lines, pairs, gains):
    """Each latent has the figures of its test whose F1 on the first half is furthest above that of all rows."""
    for line in lines:
        of_latent = {key: gain for key, gain in gains.items() if key[0] == int(line["latent"])}
        if not of_latent:
            assert line["label"] == line["q"] == "", line
            continue
        key = int(line["latent"]), line["column"], line["label"]
        assert of_latent[key] >= max(of_latent.values()) - 1e-12, (key, of_latent[key])
        assert all(line[name] == pairs[key][name] for name in ["threshold", "f1", "auroc", "p", "q"]), key


def check_associations(lines, tests, labels_path, ids, codes):
    rows = {r.pop(next(iter(r))): r for r in table(labels_path)}
    second = np.array([xxhash.xxh3_64_intdigest(i.encode(), seed=HALF_SEED) & 1 for i in ids], bool)
    cells = {}
    for column in {t["column"] for t in tests}:
        values = [{v.strip() for v in rows.get(i, {}).get(column, "").split(";")} - UNKNOWN for i in ids]
        cells[column] = np.array([bool(v) for v in values]), values
    pairs = {(int(t["latent"]), t["column"], t["label"]): t for t in tests}
    assert len(pairs) == len(tests), "a test is there twice"
    labels = {key[1:] for key in pairs}
    p, q, gains = [], [], {}
    for j in range(codes.shape[1]):
        column_values = codes[:, [j]].toarray().ravel()
        if not column_values.any():
            assert not any((j, *label) in pairs for label in labels)
            continue
        for column, label in labels:
            known, values = cells[column]
            truth = np.array([label in v for v in values])
            a, b = known & ~second, known & second
            chosen = best_threshold(truth[a], column_values[a])
            test = pairs.get((j, column, label))
            assert (chosen is None) == (test is None), (j, label)
            if test is None:
                continue
            where = (j, column, label)
            assert np.float32(test["threshold"]) == chosen[0], (where, test["threshold"], chosen)
            close((where, "first half"), float(test["chosen_f1"]), chosen[1], 1e-12)
            everything = 2 * truth[a].sum() / (truth[a].sum() + a.sum())
            gains[where] = (chosen[1] - everything) / (1 - everything)
            predicted = column_values[b] >= chosen[0]
            want = precision_recall_fscore_support(truth[b], predicted, average="binary", zero_division=0)[:3]
            for name, value in zip(["precision", "recall", "f1"], want):
                close((where, name), float(test[name]), value, 1e-12)
            close((where, "auroc"), float(test["auroc"]), roc_auc_score(truth[b], column_values[b]), 1e-12)
            counts = [(predicted & truth[b]).sum(), (predicted & ~truth[b]).sum()]
            counts += [(~predicted & truth[b]).sum(), (~predicted & ~truth[b]).sum()]
            names = ["true_positives", "false_positives", "false_negatives", "true_negatives"]
            assert [int(test[name]) for name in names] == counts, where
            p.append(scipy.stats.fisher_exact(np.reshape(counts, (2, 2)), "greater").pvalue)
            q.append(float(test["q"]))
            close((where, "p"), float(test["p"]), p[-1], 1e-9)
    assert len(p) == len(tests)
    for got, want in zip(q, scipy.stats.false_discovery_control(p, method="bh")):
        close("q", got, want, 1e-9)
    check_best(lines, pairs, gains)
    found = sum(value < 0.05 for value in q)
    print(f"associations: {len(labels)} labels, {len(p)} tests, {found} with q < 0.05: as scikit-learn and SciPy have them")


model, codes_path, features_path, *more = sys.argv[1:]
model = os.path.join(model, "model.safetensors") if os.path.isdir(model) else model
with safe_open(model, "np") as f:
    w_dec = f.get_tensor("w_dec").astype(np.float64)
f = h5py.File(codes_path)
ids, (n, k), m = f["ids"].asstr()[:], f["values"].shape, f.attrs["width"]
codes = scipy.sparse.csr_matrix((f["values"][:].ravel(), f["indices"][:].ravel(), np.arange(n + 1) * k), (n, m)).tocsc()
codes.eliminate_zeros()
lines = table(features_path)
check_features(lines, list(ids), codes, w_dec)
if more:
    check_associations(lines, table(more[1]), more[0], list(ids), codes)
