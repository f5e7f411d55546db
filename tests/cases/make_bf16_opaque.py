# bfloat16 of ml_dtypes, which h5py writes as values of two bytes without a type
import ml_dtypes
from common import *
x = rows().astype(ml_dtypes.bfloat16)
with h5py.File(path("bf16_opaque"), "w") as f: f["embeddings"] = x; f.create_dataset("ids", data=ids(), dtype=h5py.string_dtype())
expect("bf16_opaque", ids(), x.astype("f4"))
