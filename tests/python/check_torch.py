"""`Sae.to_torch()` beside the engine, and what SAEBench checks of an SAE. Needs torch and the package topk_sae.

usage: check_torch.py examples/data/prott5_uniprot_3ftx.h5

SAEBench's own checks are `check_decoder_norms` and `test_sae` of its `BaseSAE`: shapes of W_enc and W_dec, decoder rows of
length 1, and forward(x) beside decode(encode(x)) on (batch, position, D); there on activations of a language model, here on
random rows of the same shape, since the checks do not depend on their values.
"""
import copy
import platform
import sys

import h5py
import numpy as np
import topk_sae
import torch

LIMIT = 1e-6
with h5py.File(sys.argv[1]) as file:
    x = np.stack([file[name][()] for name in sorted(file)]).astype(np.float32)
print(f"torch {torch.__version__}, Python {platform.python_version()}, topk_sae {topk_sae.__version__}")
settings = {"latents": 2048, "k": 16, "steps": 100, "device": "cpu", "progress": False}
models = {
    "default": {},
    "tied": {"tied": True},
    "no normalisation": {"normalize": False},
    "relu": {"inference": "relu"},
    "abs-topk": {"activation": "abs-topk"},
}
ok = True
for name, options in models.items():
    sae = topk_sae.train(x, **settings, **options).sae
    codes = sae.encode(x)
    rows = sae.decode(codes)
    dense = codes.toarray()
    with torch.no_grad():
        module = sae.to_torch()
        theirs = module.encode(torch.from_numpy(x)).numpy()
        back = module.decode(torch.from_numpy(theirs)).numpy()
    # Where two scores are as good as equal, the k-th may be either: such rows are counted and left out.
    clear = ((theirs != 0) == (dense != 0)).all(axis=1)
    scale = np.abs(dense).max()
    difference = np.abs(theirs[clear] - dense[clear]).max() / scale
    row_difference = np.abs(back[clear] - rows[clear]).max() / np.abs(rows).max()

    unit = sae.to_torch(unit_norm=True, model_name="pythia-70m-deduped", hook_layer=4)
    cfg = unit.cfg
    batch = torch.from_numpy(x[:60].reshape(3, 20, -1).copy())
    with torch.no_grad():
        encoded = unit.encode(batch)
        decoded = unit.decode(encoded)
        flat = unit(batch.reshape(60, -1)).reshape(batch.shape)
        plain = module(batch)
    checks = {
        "W_dec (d_sae, d_in)": unit.W_dec.shape == (cfg.d_sae, cfg.d_in) and isinstance(unit.W_dec, torch.nn.Parameter),
        "W_enc (d_in, d_sae)": unit.W_enc.shape == (cfg.d_in, cfg.d_sae),
        "b_enc, b_dec": unit.b_enc.shape == (cfg.d_sae,) and unit.b_dec.shape == (cfg.d_in,),
        "decoder rows of length 1": unit.check_decoder_norms(),
        "forward is decode of encode": torch.allclose(flat, decoded),
        "unit norms change no reconstruction": torch.allclose(flat, plain, atol=1e-5),
        "device, dtype, to": unit.device.type == "cpu" and copy.deepcopy(unit).to(dtype=torch.bfloat16).dtype == torch.bfloat16,
        "cfg": {"model_name", "hook_layer", "hook_name", "dtype", "d_sae", "context_size"} <= cfg.to_dict().keys(),
    }
    failed = [what for what, held in checks.items() if not held]
    good = not failed and difference < LIMIT and row_difference < LIMIT and clear.mean() > 0.99
    ok &= good
    print(
        f"{name:17} codes {difference:.1e}  reconstruction {row_difference:.1e}  {(~clear).sum()} of {len(x)} rows not clear"
        f"  SAEBench's checks: {'all hold' if not failed else failed}  {'ok' if good else 'NOT OK'}"
    )
sys.exit(not ok)
