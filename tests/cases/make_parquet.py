# tables with a column of lists, as pandas, datasets and pyarrow write them
import pyarrow as pa, pyarrow.parquet as pq
from common import *
x = rows(40); h = x.astype("f2")
def write(name, columns, **options): pq.write_table(pa.table(columns), path(name, "parquet"), **options)
# a list a row with its id, in groups of 7 rows, zstd
write("pq_lists", {"id": ids(40), "embedding": list(x)}, row_group_size=7, compression="zstd"); expect("pq_lists", ids(40), x)
# lists of a fixed size, half precision, integer ids, snappy
fixed = pa.FixedSizeListArray.from_arrays(pa.array(h.ravel(), pa.float16()), 16)
write("pq_fixed", {"protein_id": np.arange(1000, 1040), "embedding": fixed}); expect("pq_fixed", [str(k) for k in range(1000, 1040)], h)
# double precision, gzip, version 2 pages, texts that are sequences
write("pq_double", {"sequence": ["MA"] * 40, "embedding": list(x.astype("f8"))}, compression="gzip", data_page_version="2.0"); expect("pq_double", [f"pq_double:{k}" for k in range(40)], x)
# two columns of lists
write("pq_two", {"id": ids(40), "layer_6": list(x), "layer_33": list(2 * x)}); expect("pq_two", ids(40), 2 * x)
# a column for each value
write("pq_wide", {"id": ids(40)} | {f"d{c}": x[:, c] for c in range(16)})
# lists of other lengths; a list that is missing
write("pq_ragged", {"id": ids(3), "embedding": [x[0], x[1], x[2][:8]]})
write("pq_missing", {"id": ids(3), "embedding": [x[0], None, x[2]]})
# lists of lists
write("pq_nested", {"id": ids(2), "embedding": [[list(v) for v in x[:3]], [list(v) for v in x[3:5]]]})
