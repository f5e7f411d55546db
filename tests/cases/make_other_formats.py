# arrays and tensors in files of other formats: numpy.save, safetensors.numpy.save_file
import ml_dtypes
from common import *
from safetensors.numpy import save_file
x = rows(40)
def text_ids(name, names): open(path(name, "ids.txt"), "w").write("\n".join(names) + "\n")
def numbered(name, n=40): return [f"{name}:{row}" for row in range(n)]
# one array, its ids in a file beside it
np.save(path("npy_ids", "npy"), x); text_ids("npy_ids", ids(40)); expect("npy_ids", ids(40), x)
# columns one after another, half precision, no ids
h = x.astype("f2"); np.save(path("npy_fortran", "npy"), np.asfortranarray(h)); expect("npy_fortran", numbered("npy_fortran"), h)
# the other byte order, double precision, a long header of version 2
d = x.astype(">f8")
with open(path("npy_big_endian", "npy"), "wb") as f: np.lib.format.write_array(f, d, version=(2, 0))
expect("npy_big_endian", numbered("npy_big_endian"), d)
# bfloat16 of ml_dtypes, which numpy saves as bytes
b = x.astype(ml_dtypes.bfloat16); np.save(path("npy_bfloat16", "npy"), b); expect("npy_bfloat16", numbered("npy_bfloat16"), b)
# layers x rows x columns
l = rows(120, seed=3).reshape(3, 40, 16); np.save(path("npy_layers", "npy"), l); expect("npy_layers", numbered("npy_layers"), l[2])
# rows x layers x columns: a row's values do not follow one another's
l = np.ascontiguousarray(l.transpose(1, 0, 2)); np.save(path("npy_layers_inside", "npy"), l); expect("npy_layers_inside", numbered("npy_layers_inside"), l[:, 1])
# one vector
np.save(path("P12345", "npy"), x[0]); expect("P12345", ["P12345"], x[:1])
# ids only: texts are no rows
np.save(path("npy_texts", "npy"), np.array(ids(40)))
# a tensor with integer ids beside it
save_file({"embeddings": h, "ids": np.arange(1000, 1040)}, path("st_ids", "safetensors")); expect("st_ids", [str(k) for k in range(1000, 1040)], h)
# one bfloat16 tensor for each id
save_file({n: v for n, v in zip(ids(40), b)}, path("st_per_id", "safetensors")); expect("st_per_id", ids(40), b)
# residues for each id
r, i, v = residues(ids(12)); save_file(r, path("st_residues", "safetensors")); expect("st_residues", i, v)
# two layers of the same rows
save_file({"layer_6": x, "layer_33": 2 * x}, path("st_layers", "safetensors")); expect("st_layers", numbered("st_layers"), 2 * x)
# the weights of a network
save_file({"encoder.weight": x, "encoder.bias": x[0], "head.weight": x.T.copy()}, path("st_weights", "safetensors"))
