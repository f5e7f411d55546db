"""What a type checker sees of the package: checked by mypy in strict mode, which also complains of an ignore that is not
needed. Never run."""

import numpy as np
import pandas as pd
import topk_sae

x = np.zeros((8, 4), np.float32)
run = topk_sae.train(x, ids=["a"] * 8, k=2, preset="topk", lr="auto", skip_bad_rows="all", out="runs/a", progress=print)
topk_sae.train(["a.h5", "b.h5"], ids="@id", groups="families.tsv", dataset="*/layer_33")
topk_sae.train(x, ids=pd.Series(list("abcdefgh")), groups=np.arange(8))
topk_sae.train(x, kk=2)  # type: ignore[call-arg]
topk_sae.train(x, k="two")  # type: ignore[arg-type]
topk_sae.train(x, preset="none such")  # type: ignore[arg-type]
topk_sae.train(x, progress=1.5)  # type: ignore[arg-type]
fvu: float | None = run.metrics[-1]["val_fvu"]
sae: topk_sae.Sae = run.sae
codes: topk_sae.Codes = sae.encode(x)
values, indices = sae.encode(x, format="topk")
rows: np.ndarray = sae.decode(codes, like=x)
w_dec: np.ndarray = sae.w_dec
k: int = sae.k
frame: pd.DataFrame = sae.features(x, labels=pd.DataFrame({"id": ["a"], "kind": ["b"]})).to_pandas()
track: pd.DataFrame = sae.track(x, "P1", latents=[1, 2]).to_pandas()
page: str = topk_sae.report(run, x).html
sae.w_dec = w_dec  # type: ignore[misc]
