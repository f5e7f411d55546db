"""Makes models with the libraries' own classes, saves them with the libraries' own code, imports them with `sae import`, and
compares the codes of `sae encode` with those of the libraries, and what they decode to. Outside the quick suite: it needs
the libraries.

    python3 -m venv V && V/bin/pip install torch h5py sae-lens dictionary-learning && V/bin/pip install --no-deps --ignore-requires-python esm
    V/bin/python tests/python/foreign_models.py SAE

SAE is the binary. Weights are random, and rows too: nothing is trained, and nothing is loaded from a network. Gemma Scope is
read by SAELens' loaders, which find files made here where they would download. Exits with 1 if anything is further than 1e-5
away or a library is missing.
"""
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import load_file, save_file

sae = sys.argv[1]
folder = Path(tempfile.mkdtemp())
D, M, K, N = 48, 192, 8, 100
failed = False
torch.manual_seed(0)
torch.set_grad_enabled(False)
x = 3 * torch.randn(N, D) + torch.randn(D)
with h5py.File(folder / "rows.h5", "w") as f:
    f["embeddings"] = x.numpy()
    f["ids"] = [f"row{i:03}" for i in range(N)]


def imported(where, *more):
    """Codes (N, M) of `sae encode`, what they decode to, and the architecture, of the model at `where`."""
    model, codes = folder / "model.safetensors", folder / "codes.tsv"
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([sae, "import", where, "-o", model, "--overwrite", "--quiet", *more], **quiet)
    subprocess.run([sae, "encode", model, folder / "rows.h5", "-o", codes, "--format=tsv", "--overwrite", "--quiet"], **quiet)
    h = torch.zeros(N, M, dtype=torch.float64)
    for line in codes.read_text().splitlines()[1:]:
        row, latent, value = line.split("\t")
        h[int(row[3:]), int(latent)] = float(value)
    with open(model, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    architecture = json.loads(header["__metadata__"]["architecture"])
    tensors = load_file(model)
    y = h @ tensors["w_dec"].double() + tensors["b_pre"].double()
    if architecture["normalize"]:
        y = y * x.double().std(1, keepdim=True) + x.double().mean(1, keepdim=True)
    return h, y, architecture


def far(got, want):
    want = want.double()
    return ((got - want).abs().max() / want.abs().max()).item() if want.isfinite().all() else float("nan")


def report(name, where, codes, recon, *more, **expected):
    global failed
    h, y, architecture = imported(where, *more)
    c, r = far(h, codes), far(y, recon)
    l0 = (codes > 0).double().sum(1).mean().item()
    said = all(architecture.get(key) == value for key, value in expected.items())
    # Were all latents active, or none, a threshold would not show.
    good = c <= 1e-5 and r <= 1e-5 and 1 <= l0 <= 0.9 * M and said
    failed |= not good
    print(f"{name:<56} L0 {l0:5.1f}  codes {c:.1e}  reconstruction {r:.1e}  {'ok' if good else f'WRONG {architecture}'}", flush=True)


def randomise(module):
    """Weights of a size that makes about a tenth of the latents fire."""
    for name, p in module.named_parameters():
        p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 else 0.2))
        if "threshold" in name:
            p.copy_(8 + 2 * torch.rand_like(p))


def saelens():
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    print(f"sae-lens {importlib.metadata.version('sae-lens')}")
    widths = [16, 64, M]
    kinds = [
        ("jumprelu", JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {}, {"activation": "jumprelu"}),
        ("topk, ranked by score times decoder norm", TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K}, {"activation": "topk"}),
        ("batchtopk, ranked by score times decoder norm", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": float(K)},
         {"activation": "batch-topk", "k": K}),
        ("batchtopk, ranked by score", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig,
         {"k": float(K), "rescale_acts_by_decoder_norm": False}, {"activation": "batch-topk", "k": K}),
        ("matryoshka_batchtopk", MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig,
         {"k": float(K), "matryoshka_widths": widths}, {"activation": "batch-topk", "k": K, "prefixes": widths}),
        ("batchtopk of rows with layer_norm", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig,
         {"k": float(K), "normalize_activations": "layer_norm"}, {"normalize": True}),
    ]
    for name, kind, config, settings, expected in kinds:
        lib = kind(config(d_in=D, d_sae=M, device="cpu", dtype="float32", **settings))
        randomise(lib)
        if hasattr(lib, "topk_threshold"):
            lib.topk_threshold.fill_({"batchtopk, ranked by score": 8, "batchtopk of rows with layer_norm": 5}.get(name, 16))
        place = folder / name.replace(" ", "_").replace(",", "")
        lib.save_inference_model(place / "inference")
        lib.save_model(place / "training")
        loaded = SAE.load_from_disk(str(place / "inference"))
        codes = loaded.encode(x)
        recon = loaded.decode(codes)
        for saved in ("inference", "training"):
            report(f"SAELens {name}, {saved} save", place / saved, codes, recon, **expected)
    old_saelens(SAE)
    gemma(SAE)


def old_saelens(SAE):
    """A flat cfg.json, as versions before 6 wrote it, read by SAELens' own conversion."""
    place = folder / "old"
    place.mkdir()
    save_file({"W_enc": 0.3 * torch.randn(D, M), "W_dec": 0.3 * torch.randn(M, D), "b_enc": 0.2 * torch.randn(M),
               "b_dec": torch.randn(D)}, place / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": M, "dtype": "torch.float32", "device": "cpu",
              "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": True,
              "finetuning_scaling_factor": False, "normalize_activations": "none", "model_name": "gpt2-small",
              "hook_name": "blocks.8.hook_resid_pre", "hook_layer": 8, "hook_head_index": None, "context_size": 128,
              "prepend_bos": True, "dataset_path": "x", "dataset_trust_remote_code": True, "neuronpedia_id": None,
              "sae_lens_training_version": "3.22.2"}
    (place / "cfg.json").write_text(json.dumps(config))
    loaded = SAE.load_from_disk(str(place))
    codes = loaded.encode(x)
    report("SAELens before version 6, top-k", place, codes, loaded.decode(codes), activation="topk", k=K)


def gemma(SAE):
    from sae_lens.loading import pretrained_sae_loaders as loaders
    first, second = folder / "layer_20/width_16k", folder / "resid_post/layer_12_width_16k_l0_small"
    tensors = {"w_enc": 0.3 * torch.randn(D, M), "w_dec": 0.3 * torch.randn(M, D), "b_enc": 0.2 * torch.randn(M),
               "b_dec": torch.randn(D), "threshold": 8 + 2 * torch.rand(M)}
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    np.savez(first / "params.npz", **{n.replace("w_", "W_"): t.numpy() for n, t in tensors.items()})
    np.savez_compressed(second / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
    save_file(tensors, second / "params.safetensors")
    (second / "config.json").write_text(json.dumps({
        "architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "hf_hook_point_in": "model.layers.12.output",
        "hf_hook_point_out": "model.layers.12.output", "width": M, "l0": 60, "affine_connection": False, "type": "sae"}))

    def here(repo_id, filename, subfolder=None, **_):
        return str(folder / (subfolder or "") / filename)

    loaders.hf_hub_download = here
    loaders.get_safetensors_tensor_shapes = lambda repo_id, name: {n: list(t.shape) for n, t in load_file(folder / name).items()}

    def library(config, state):
        lib = SAE.from_dict({**config, "d_in": D, "d_sae": M, "device": "cpu", "metadata": {}})
        lib.load_state_dict(state)
        codes = lib.encode(x)
        return codes, lib.decode(codes)

    config, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", "layer_20/width_16k")
    assert config["architecture"] == "jumprelu" and not config["apply_b_dec_to_input"]
    want = library({k: config[k] for k in ("architecture", "dtype", "apply_b_dec_to_input")}, state)
    report("Gemma Scope 1, params.npz", first, *want, activation="jumprelu")
    report("Gemma Scope 1, params.npz, compressed, names in lower case", second / "params.npz", *want, activation="jumprelu")
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", str(second.relative_to(folder)))
    assert config["architecture"] == "jumprelu" and not config["apply_b_dec_to_input"]
    want = library({k: config[k] for k in ("architecture", "dtype", "apply_b_dec_to_input")}, state)
    report("Gemma Scope 2, params.safetensors", second / "params.safetensors", *want, activation="jumprelu", k=60)


def dictionary_learning():
    try:
        import nnsight  # noqa: F401
    except ImportError:  # only its training from language models needs it; importing the package asks for it
        stub = types.ModuleType("nnsight")
        stub.LanguageModel = object
        sys.modules["nnsight"] = stub
    from dictionary_learning.dictionary import AutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary
    print(f"dictionary-learning {importlib.metadata.version('dictionary-learning')}")
    groups = [16, 48, M - 64]
    for lib, expected in (
        (AutoEncoderTopK(D, M, K), {"activation": "topk", "k": K}),
        (BatchTopKSAE(D, M, K), {"activation": "batch-topk", "k": K}),
        (MatryoshkaBatchTopKSAE(D, M, K, groups), {"activation": "batch-topk", "prefixes": [16, 64, M]}),
        (JumpReluAutoEncoder(D, M), {"activation": "jumprelu"}),
        (AutoEncoder(D, M), {"inference": "relu"}),
    ):
        randomise(lib)
        trainer = {"dict_class": type(lib).__name__}
        if hasattr(lib, "k"):
            trainer["k"] = K
            lib.threshold.fill_(8)
        place = folder / trainer["dict_class"]
        place.mkdir()
        torch.save(lib.state_dict(), place / "ae.pt")
        (place / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        lib, _ = load_dictionary(str(place), "cpu")
        codes = lib.encode(x)
        report(f"dictionary_learning {trainer['dict_class']}", place, codes, lib.decode(codes), **expected)


def esmc():
    # The file alone: importing the package asks for all that ESMC itself needs.
    at = importlib.util.find_spec("esm")
    if at is None:
        raise ImportError("esm")
    spec = importlib.util.spec_from_file_location("esmc_sae", Path(at.submodule_search_locations[0], "models/esmc/sae.py"))
    sys.modules["esmc_sae"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(f"esm {importlib.metadata.version('esm')}")
    model = module.EsmcSaeModel(module.EsmcSaeConfig(d_model=D, codebook_dim=M, k=K))
    for layer in (3, 7):
        model.layers[str(layer)] = made = module.EsmcSaeLayer(module.EsmcSaeParams(d_model=D, codebook_dim=M, k=K, layer=layer))
        randomise(made)
        made.idf.copy_(torch.rand(M))
        made.max.copy_(5 * torch.rand(M))
    model.save_pretrained(folder / "esmc")
    loaded = module.EsmcSaeModel.from_pretrained(folder / "esmc")
    loaded.initialize_layers([3, 7])
    for layer in (3, 7):
        codes = loaded(x, layer=layer).feature_magnitudes
        lib = loaded.layers[str(layer)]
        # Of the normalised row; put back here as `sae` does.
        recon = (codes @ lib.W_dec + lib.b_dec) * x.std(1, keepdim=True) + x.mean(1, keepdim=True)
        report(f"ESMC, layer {layer} of two", folder / "esmc", codes, recon, "--layer", str(layer), activation="topk", k=K)


print(f"torch {importlib.metadata.version('torch')}, Python {sys.version.split()[0]}, {subprocess.check_output([sae, '--version'], text=True).strip()}")
print(f"{N} random rows, D = {D}, M = {M}")
for check in (saelens, dictionary_learning, esmc):
    try:
        check()
    except ImportError as e:
        failed = True
        print(f"{check.__name__}: NOT RUN: {e}")
sys.exit(failed)
