"""Times `sae`'s loader against h5py's loop on UniProt's layout, in turns, in one run.

    cargo build --release --example load_time
    python benches/load_vs_h5py.py [--bin target/release/examples/load_time]

Makes a file of ROWS root datasets of WIDTH float16 in a temporary folder, checks that both
see the same values in the same order, and prints a table of seconds and the ratio of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import h5py
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser.add_argument("--bin", default=os.path.join(target, "release/examples/load_time"))
    parser.add_argument("--rows", type=int, default=20660)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--libver", default="earliest", choices=["earliest", "latest"])
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "per-protein.h5")
        rng = np.random.default_rng(0)
        with h5py.File(path, "w", libver=args.libver) as file:
            for i in rng.permutation(args.rows):
                file[f"P{i:05d}"] = rng.standard_normal(args.width).astype(np.float16)

        h5py_times, sae_times = [], []
        for repeat in range(args.repeats):
            start = time.perf_counter()
            with h5py.File(path) as file:
                rows = np.stack([file[key][()] for key in file])
            h5py_times.append(time.perf_counter() - start)
            answer = json.loads(subprocess.run([args.bin, path], check=True, capture_output=True).stdout)
            assert (answer["n_rows"], answer["d_in"]) == rows.shape, answer
            expected = rows.astype(np.float64).sum(axis=1) @ np.arange(1, len(rows) + 1)
            assert abs(answer["sum"] - expected) <= 1e-9 * abs(expected) + 1e-3, (answer, expected)
            sae_times.append(answer["seconds"])

    print(f"{args.rows} datasets of {args.width} float16, libver {args.libver}, {os.cpu_count()} CPUs, "
          f"h5py {h5py.__version__} on HDF5 {h5py.version.hdf5_version}")
    print(f"{'repeat':>8} {'h5py s':>9} {'sae s':>9} {'ratio':>7}")
    for repeat, (slow, fast) in enumerate(zip(h5py_times, sae_times)):
        print(f"{repeat:>8} {slow:>9.3f} {fast:>9.3f} {slow / fast:>7.1f}")
    slow, fast = statistics.median(h5py_times), statistics.median(sae_times)
    print(f"{'median':>8} {slow:>9.3f} {fast:>9.3f} {slow / fast:>7.1f}")


if __name__ == "__main__":
    main()
