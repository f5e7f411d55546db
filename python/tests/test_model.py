"""A trained model: tensors, codes, figures, features, report, files of other libraries."""

import copy
import json
import pickle
import subprocess

import h5py
import numpy as np
import pytest
import scipy.sparse
import topk_sae
from conftest import FILE, LABELS, ROOT, SMALL


@pytest.fixture(scope="module")
def sae(run):
    return run.sae


def reference(sae, x):
    """Dense codes and reconstructions by NumPy, from the formulas."""
    x = x.astype(np.float64)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    scores = ((x - mean) / (std + sae.architecture["norm_eps"]) - sae.b_pre) @ sae.w_enc.T.astype(np.float64) + sae.b_lat
    order = np.argsort(-scores, axis=1, kind="stable")[:, : sae.k]
    codes = np.zeros_like(scores)
    np.put_along_axis(codes, order, np.maximum(np.take_along_axis(scores, order, 1), 0), 1)
    return codes, (codes @ sae.w_dec + sae.b_pre) * std + mean


def test_tensors_are_views_that_cannot_be_written(sae):
    for name, shape in (("w_enc", (256, 1024)), ("w_dec", (256, 1024)), ("b_pre", (1024,)), ("b_lat", (256,))):
        tensor = getattr(sae, name)
        assert tensor.shape == shape and tensor.dtype == np.float32 and not tensor.flags.owndata
        assert np.shares_memory(tensor, getattr(sae, name))
        with pytest.raises(ValueError, match="read-only"):
            tensor[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            tensor.flags.writeable = True
    assert (sae.d_in, sae.n_latents, sae.k, sae.normalize) == (1024, 256, 8, True)


def test_a_tensor_outlives_its_model(run):
    tensor = run.sae.w_enc
    assert np.isfinite(tensor).all() and (tensor == run.sae.w_enc).all()


def test_codes_are_those_of_the_formulas_and_of_the_command(sae, proteins, run, tmp_path):
    _, x = proteins
    codes = sae.encode(x)
    assert isinstance(codes, scipy.sparse.csr_array) and codes.shape == (536, 256)
    assert codes.dtype == np.float32 and codes.has_sorted_indices
    dense, rows = reference(sae, x)
    assert np.abs(codes.toarray() - dense).max() < 1e-4
    out = tmp_path / "codes.h5"
    subprocess.run(["sae", "--device=cpu", "--quiet", "encode", run.path, FILE, "-o", out], check=True)
    with h5py.File(out) as file:
        values, indices = file["values"][:], file["indices"][:]
    mine, places = sae.encode(x, format="topk")
    by_latent = lambda values, indices: np.take_along_axis(values, np.argsort(indices, 1), 1)
    used = (values > 0).all() and (mine > 0).all()
    assert used and (by_latent(mine, places) == by_latent(values, indices)).all()
    assert (np.diff(mine, axis=1) <= 0).all()
    assert np.abs(sae.decode(codes) - rows).max() < 1e-4
    assert np.abs(sae.decode(dense, like=x) - rows).max() < 1e-4


def test_codes_of_other_types_are_nearly_the_same(sae, proteins):
    x = proteins[1]
    codes = sae.encode(x).toarray()
    for dtype in (np.float32, np.float64):
        assert np.abs(sae.encode(x.astype(dtype)).toarray() - codes).max() < 1e-5
    with pytest.raises(topk_sae.DataError, match="ascontiguousarray"):
        sae.encode(np.asfortranarray(x))
    x = x.copy()
    x[5, 7] = np.nan
    with pytest.raises(RuntimeError, match="a score of row 5 is not finite"):
        sae.encode(x)
    with pytest.raises(topk_sae.UsageError, match="512 values and the model takes 1024"):
        sae.encode(np.ascontiguousarray(x[:, :512]))


def test_decode_asks_for_what_it_lacks(sae, proteins):
    codes = sae.encode(proteins[1])
    with pytest.raises(topk_sae.UsageError, match="like=x"):
        sae.decode(codes[:5])
    assert sae.decode(codes[:5], like=proteins[1][:5]).shape == (5, 1024)
    with pytest.raises(topk_sae.UsageError, match="5 codes and 4 rows"):
        sae.decode(codes[:5], like=proteins[1][:4])
    with pytest.raises(topk_sae.UsageError, match="256"):
        sae.decode(np.zeros((2, 3)))


def test_figures_are_those_of_the_command(sae, proteins, run):
    ids, x = proteins
    out = subprocess.run(
        ["sae", "--device=cpu", "--quiet", "--json", "eval", run.path, FILE], check=True, capture_output=True
    )
    command = {result["split"]: result for result in json.loads(out.stdout)}
    assert sae.evaluate(x, ids=ids, split="each", device="cpu") == command
    assert sae.evaluate(x, device="cpu") == command["all"]
    assert sae.evaluate(FILE, split="val", device="cpu") == command["val"]
    assert command["val"]["fvu"] == pytest.approx(run.summary["val"]["fvu"], rel=1e-6)


def test_features_are_those_of_the_command(sae, proteins, run):
    pandas = pytest.importorskip("pandas")
    ids, x = proteins
    out = subprocess.run(
        ["sae", "--device=cpu", "--quiet", "--json", "features", run.path, FILE, "--labels", LABELS],
        check=True,
        capture_output=True,
    )
    command = json.loads(out.stdout)
    with pytest.warns(UserWarning):
        of_file = sae.features(FILE, labels=LABELS, device="cpu")
    frame = pandas.read_csv(LABELS, sep="\t")
    for labels in (frame.rename(columns={frame.columns[0]: "id"}), frame.set_index(frame.columns[0])):
        with pytest.warns(UserWarning):
            found = sae.features(x, ids=ids, labels=labels, memory="1K", device="cpu")
        assert found.latents == of_file.latents == command["latents"]
        assert found.labels["labels"] == command["labels"]["labels"]
    table = found.to_pandas()
    assert len(table) == 256 and table.index.name == "latent"
    best = table.dropna(subset="f1").sort_values("f1").iloc[-1]
    assert best["label"] and best["top_ids"][0] in ids
    assert "<table" in found._repr_html_() and "256 latents" in repr(found)
    assert len(found) == 256 and found[3]["latent"] == 3


def test_a_track_is_that_of_the_command_and_of_encode(sae, run, tmp_path):
    pandas = pytest.importorskip("pandas")
    lengths, rng = {"P1": 7, "P2": 5}, np.random.default_rng(0)
    rows = {name: rng.normal(size=(n, 1024)).astype(np.float32) for name, n in lengths.items()}
    file = tmp_path / "residues.h5"
    with h5py.File(file, "w") as f:
        for name, values in rows.items():
            f[name] = values
    out = tmp_path / "track.tsv"
    command = ["sae", "--device=cpu", "--quiet", "features", run.path, file, "--track=P1", "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    track = sae.track(file, "P1", device="cpu")
    codes = sae.encode(rows["P1"]).toarray()
    assert (track.activations == codes[:, track.latents]).all() and track.activations.shape == (7, 8)
    assert set(track.latents) == set(np.argsort(-codes.max(0), kind="stable")[:8])
    table = track.to_pandas()
    # As text: pandas' own reading of numbers may be off by the last bit.
    written = pandas.read_csv(out, sep="\t", index_col="position", dtype=str)
    assert list(written.columns) == list(table.columns) and list(written["id"]) == list(table["id"]) == track.ids
    assert (written.iloc[:, 1:].astype(np.float32).to_numpy() == track.activations).all()
    ids = [f"{name}:{n}" for name in rows for n in range(len(rows[name]))]
    both = np.concatenate(list(rows.values()))
    for of_array in (sae.track(both, "P1", ids=ids, device="cpu"), sae.track(rows["P1"], "P1", device="cpu")):
        assert (of_array.activations == track.activations).all() and len(of_array) == 7
    chosen = sae.track(file, "P2", latents=[3, 1], tokens=(1, 2), device="cpu")
    assert chosen.ids == ["P2:2", "P2:3"] and list(chosen.latents) == [3, 1] and list(chosen.positions) == [1, 2]
    assert "2 latents along P2" in repr(chosen) and "<table" in chosen._repr_html_()
    with pytest.raises(topk_sae.DataError, match='holds no rows of "P3"; of its 2 ids the nearest are "P1", "P2"'):
        sae.track(file, "P3", device="cpu")


def test_a_track_colours_a_structure(sae, tmp_path):
    x = np.random.default_rng(1).normal(size=(4, 1024)).astype(np.float32)
    track = sae.track(x, "P1", device="cpu")
    line = "ATOM  {0:>5}  CA  GLY A{0:>4}       1.000   1.000   1.000  1.00 42.25           C\n"
    structure, out = tmp_path / "P1.pdb", tmp_path / "out.pdb"
    structure.write_text("".join(line.format(n) for n in range(1, 5)))
    assert track.colour(structure, out)["residues"] == 4
    b = [float(line[60:66]) for line in out.read_text().splitlines()]
    first = track.activations[:, 0]
    assert np.abs(np.array(b) - 100 * first / first.max()).max() < 0.00501
    with pytest.raises(topk_sae.UsageError, match="exists already"):
        track.colour(structure, out)
    with pytest.raises(topk_sae.UsageError, match="the track has no latent 999; it has"):
        track.colour(structure, out, latent=999)
    with pytest.raises(topk_sae.DataError, match='has no chain "B"'):
        track.colour(structure, out, chain="B", overwrite=True)


def test_labels_that_are_no_table_are_an_error(sae, proteins):
    ids, x = proteins
    with pytest.raises(topk_sae.UsageError, match="frame of pandas"):
        sae.features(x, ids=ids, labels=["a"] * 536)
    with pytest.raises(FileNotFoundError, match="nothing.tsv"):
        sae.features(x, ids=ids, labels="nothing.tsv")
    with pytest.raises(topk_sae.UsageError, match="memory=much: `much` is not a size"):
        sae.features(x, ids=ids, memory="much")


def test_a_report_shows_itself(run, proteins, tmp_path):
    ids, x = proteins
    with pytest.warns(UserWarning):
        report = topk_sae.report(run, x, ids=ids, labels=LABELS)
    assert report.path == run.path / "report.html" and "<iframe srcdoc=" in report._repr_html_()
    assert "of an array in memory" in report.html and "<title>" in report.html
    # A second time its own report is replaced; another file is not.
    topk_sae.report(run.path, x, ids=ids)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(topk_sae.UsageError, match="exists already"):
        topk_sae.report(run, x, ids=ids, out=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    with pytest.raises(topk_sae.UsageError, match="does not say what it was trained on"):
        topk_sae.report(run)


@pytest.mark.parametrize("activation", ["batch-topk", "jumprelu", "relu"])
def test_codes_without_places_per_row_are_those_of_the_formula_and_of_the_module(proteins, activation):
    sae = topk_sae.train(proteins[1], activation=activation, prefixes="16,64", **SMALL).sae
    x = proteins[1][:50].astype(np.float64)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    scores = ((x - mean) / (std + sae.architecture["norm_eps"]) - sae.b_pre) @ sae.w_enc.T.astype(np.float64) + sae.b_lat
    threshold = 0.0 if sae.threshold is None else sae.threshold
    assert (sae.threshold is None) == (activation == "relu")
    assert sae.architecture["prefixes"] == [16, 64, sae.n_latents]
    want = np.where(scores > threshold, np.maximum(scores, 0), 0)
    codes = sae.encode(proteins[1][:50], device="cpu").toarray()
    clear = np.abs(scores - threshold) > 1e-4
    assert np.abs(codes - want)[clear].max() < 1e-3 and clear.mean() > 0.99
    torch = pytest.importorskip("torch")
    module = sae.to_torch()
    got = module.encode(torch.from_numpy(proteins[1][:50].astype(np.float32))).detach().numpy()
    assert np.abs(got - codes)[clear].max() < 1e-3


def test_models_are_pickled_copied_and_saved(sae, proteins, tmp_path, monkeypatch):
    x = proteins[1]
    monkeypatch.chdir(tmp_path)
    sae.save("model.safetensors")
    with pytest.raises(topk_sae.UsageError, match="exists already"):
        sae.save("model.safetensors")
    for other in (
        pickle.loads(pickle.dumps(sae)),
        copy.deepcopy(sae),
        topk_sae.load("model.safetensors"),
    ):
        assert (other.w_enc == sae.w_enc).all() and (other.w_dec == sae.w_dec).all()
        assert other.architecture == sae.architecture and other.provenance == sae.provenance
        assert other.evaluate(x)["mse"] == sae.evaluate(x)["mse"]
    assert repr(sae) == "<Sae d_in=1024 n_latents=256 k=8>"


def test_models_of_other_libraries_are_loaded(run, sae, proteins, tmp_path):
    x = proteins[1]
    for format in ("saelens", "sparsify", "dictionary-learning", "interprot", "openai", "esmc"):
        out = tmp_path / format
        args = ["sae", "--quiet", "export", run.path, "--format", format, "-o", out]
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL)
        other = topk_sae.load(out)
        assert np.abs(other.encode(x).toarray() - sae.encode(x).toarray()).max() < 2e-3, format
        assert other.evaluate(x)["fvu"] == pytest.approx(sae.evaluate(x)["fvu"], rel=1e-3)
        assert other.path is None and len(other.features(x)) == 256
        for file in out.glob("*.safetensors"):
            assert len(topk_sae.load(file).features(x)) == 256
    with pytest.raises(topk_sae.ModelError, match="is not a model of sae"):
        topk_sae.load(LABELS)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        topk_sae.load("nowhere")
    with pytest.raises(topk_sae.UsageError, match="format"):
        topk_sae.load(tmp_path / "saelens", format="keras")


def test_a_model_of_version_0_1_0_is_loaded():
    models = list((ROOT / "tests/fixtures").rglob("model.safetensors"))
    assert models
    for model in models:
        assert topk_sae.load(model).encode(np.ones((2, topk_sae.load(model).d_in), np.float32)).shape[0] == 2


def test_a_transformer_of_scikit_learn_is_a_few_lines(proteins):
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")

    class SparseCodes(base.TransformerMixin, base.BaseEstimator):
        def fit(self, x, y=None):
            self.sae_ = topk_sae.train(x, **SMALL).sae
            return self

        def transform(self, x):
            return self.sae_.encode(x)

    x = proteins[1].astype(np.float32)
    codes = pipeline.make_pipeline(SparseCodes()).fit_transform(x)
    assert codes.shape == (536, 256) and codes.nnz == 536 * 8


def test_the_program_is_there():
    out = subprocess.run(["sae", "--version"], check=True, capture_output=True, text=True)
    assert out.stdout == f"sae {topk_sae.__version__}\n"
    wrong = subprocess.run(["sae", "train"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "error" in wrong.stderr
