"""Training: the bits of the command, rows in place, interruption, threads, warnings and errors."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
import topk_sae
from conftest import FILE, SMALL
from safetensors.numpy import load_file

#: The options of SMALL for the command.
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "device"]


def tensors(run):
    return load_file(run.path / "model.safetensors")


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A run of the sample file by the command `sae`."""
    out = tmp_path_factory.mktemp("command") / "run"
    subprocess.run(["sae", "--device=cpu", "train", FILE, "--out", out, "--quiet", *FLAGS], check=True)
    return topk_sae.Run(out)


def test_an_array_a_file_and_the_command_give_the_same_bits(run, command, tmp_path):
    file = topk_sae.train(FILE, out=tmp_path / "file", **SMALL)
    assert same(file, command) and same(run, command)
    for name in ("metrics.csv", "splits.tsv"):
        read = lambda of: [line.split(",") for line in (of.path / name).read_text().splitlines()]
        a, b, c = read(run), read(command), read(file)
        if name == "metrics.csv":
            # But for the time that it took.
            at = a[0].index("rows_per_second")
            for rows in (a, b, c):
                for row in rows[1:]:
                    row[at] = None
        assert a == b == c
    figures = [{**of.summary, "rows_per_second": 0} for of in (run, command, file)]
    assert figures[0] == figures[1] == figures[2]


def test_figures_are_those_of_the_folder(run):
    assert run.summary == json.loads((run.path / "summary.json").read_text())
    assert [row["step"] for row in run.metrics] == [20, 40, 60]
    assert run.metrics[-1]["val_fvu"] == pytest.approx(run.summary["val"]["fvu"])
    assert f"fvu={run.summary['val']['fvu']:.4f}" in repr(run)


def test_types_of_an_array_that_hold_the_same_values_give_nearly_the_same_model(proteins, run, tmp_path):
    ids, x = proteins
    for dtype in (np.float32, np.float64):
        other = topk_sae.train(x.astype(dtype), ids=ids, out=tmp_path / dtype.__name__, **SMALL)
        assert same(run, other), dtype


def test_frames_of_pandas_are_rows_with_their_index_as_ids(proteins, run):
    pandas = pytest.importorskip("pandas")
    ids, x = proteins
    frame = pandas.DataFrame(x.astype(np.float32), index=ids)
    assert same(run, topk_sae.train(frame, **SMALL))
    # As a table that was read from a file lies in memory.
    assert same(run, topk_sae.train(pandas.DataFrame({n: frame[n] for n in frame}), **SMALL))
    column = pandas.Series(ids)
    assert same(run, topk_sae.train(x, ids=column, **SMALL))
    assert same(run, topk_sae.train(x, ids=np.array(ids, dtype="S"), **SMALL))


def test_without_out_a_run_lives_as_long_as_its_model(proteins):
    ids, x = proteins
    run = topk_sae.train(x[:64], ids=ids[:64], **{**SMALL, "steps": 2, "batch_size": 32})
    folder, sae = run.path, run.sae
    del run
    assert folder.is_dir() and sae.evaluate(x[:64])["rows"] == 64
    del sae
    assert not folder.exists()


def test_groups_stay_in_one_split(proteins, tmp_path):
    ids, x = proteins
    groups = [f"family {n % 20}" for n in range(len(ids))]
    run = topk_sae.train(x, ids=ids, groups=groups, out=tmp_path / "run", **SMALL)
    lines = [line.split("\t") for line in (run.path / "splits.tsv").read_text().splitlines()]
    assert lines[0] == ["id", "split", "group"] and len(lines) == 537
    parts = {}
    for _, part, group in lines[1:]:
        parts.setdefault(group, set()).add(part)
    assert len(parts) == 20 and all(len(of) == 1 for of in parts.values())
    assert {part for of in parts.values() for part in of} == {"train", "val", "test"}


MEMORY = """
import resource, sys
import numpy as np
import topk_sae
x = np.empty((200_000, 512), np.{dtype})
for start in range(0, len(x), 10_000):
    x[start:start + 10_000] = np.random.default_rng(start).normal(size=(10_000, 512))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
topk_sae.train(x[:2000], latents=64, k=4, steps=3, eval_every=3, progress=False)
before = peak()
run = topk_sae.train(x, latents=64, k=4, steps=3, eval_every=3, progress=False)
trained = peak() - before
before = peak()
codes = run.sae.encode(x)
print(x.nbytes, trained, peak() - before)
"""


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_contiguous_array_is_not_copied(dtype):
    out = subprocess.run(
        [sys.executable, "-c", MEMORY.format(dtype=dtype)], check=True, capture_output=True, text=True
    )
    size, trained, encoded = map(int, out.stdout.split())
    print(f"{dtype}: {size / 1e6:.0f} MB of rows, training took {trained / 1e6:.0f} MB, encoding {encoded / 1e6:.0f}")
    # Ids, their split and an evaluation of 20,000 rows; then codes of 4 entries per row, several times.
    assert trained < 0.35 * 200_000 * 512 * 2 + 20e6
    assert encoded < 0.35 * 200_000 * 512 * 2


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
import topk_sae
x = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
seen = []
def hear(event):
    seen.append(event)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGINT)
try:
    topk_sae.train(x, latents=512, k=4, steps=3000, out=sys.argv[1], progress=hear)
except KeyboardInterrupt as stopped:
    print(stopped)
run = topk_sae.resume(sys.argv[1], x, progress=False)
whole = topk_sae.train(x, latents=512, k=4, steps=3000, out=sys.argv[1] + "-whole", progress=False)
print((run.sae.w_enc == whole.sae.w_enc).all())
"""


def test_ctrl_c_leaves_a_checkpoint_from_which_resume_goes_on(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, tmp_path / "run"], check=True, capture_output=True, text=True
    )
    stopped, same = out.stdout.splitlines()
    assert "a checkpoint is on disk: continue with `topk_sae.resume(" in stopped, out
    assert same == "True"
    refused = subprocess.run(
        ["sae", "train", "--resume", tmp_path / "run-whole"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "topk_sae.resume" in refused.stderr


def test_a_run_without_a_folder_says_that_nothing_is_kept(proteins):
    ids, x = proteins

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        topk_sae.train(x, ids=ids, progress=stop, **{**SMALL, "steps": 10**6})


def test_progress_is_told_and_its_exceptions_end_the_run(proteins, tmp_path):
    ids, x = proteins
    events = []
    topk_sae.train(x, ids=ids, progress=events.append, **SMALL)
    lines = [event["metrics"] for event in events if "metrics" in event]
    assert [line["step"] for line in lines] == [20, 40, 60] and lines[0]["val"]["fvu"] > 0
    assert any(event.get("steps") == 60 and event["loss"] > 0 for event in events)

    def fails(event):
        raise ZeroDivisionError("of the callback")

    with pytest.raises(ZeroDivisionError, match="of the callback"):
        topk_sae.train(x, ids=ids, progress=fails, out=tmp_path / "run", **{**SMALL, "steps": 10**6})
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_two_trainings_in_two_threads(proteins, run):
    ids, x = proteins
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(topk_sae.train, rows, ids=ids, **SMALL) for rows in (x, x.astype(np.float32))]
        assert all(same(run, other.result()) for other in runs)


def test_python_goes_on_while_the_engine_works():
    x = np.random.default_rng(0).normal(size=(4000, 256)).astype(np.float32)
    ticks, over = [], threading.Event()

    def tick():
        while not over.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.monotonic()
    topk_sae.train(x, latents=1024, k=8, steps=60, progress=False)
    ended = time.monotonic()
    over.set()
    thread.join()
    inside = [a for a in ticks if began <= a <= ended]
    # With the interpreter's lock held there would be one or two.
    assert len(inside) > 10, (len(inside), ended - began)


def test_bad_rows_are_named_or_skipped_with_a_warning(proteins):
    ids, x = proteins
    x = x.astype(np.float32)
    x[7, 3] = np.nan
    with pytest.raises(topk_sae.DataError, match="^the array: row 7: column 3 is NaN; ") as error:
        topk_sae.train(x, ids=ids, **SMALL)
    assert isinstance(error.value, ValueError)
    with pytest.warns(UserWarning, match="1 rows skipped: 1 not finite") as caught:
        run = topk_sae.train(x, ids=ids, skip_bad_rows=True, **SMALL)
    # At the caller's line, so that it is told once for each.
    assert {warning.filename for warning in caught} == {__file__}
    assert sum(run.summary[part]["rows"] for part in ("train", "val", "test")) == 535
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 rows skipped"):
            topk_sae.train(x, ids=ids, skip_bad_rows=True, **SMALL)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"k": 0}, topk_sae.UsageError, "k"),
        ({"latents": "many"}, topk_sae.UsageError, "latents=many"),
        ({"no_such_option": 1}, topk_sae.UsageError, "no_such_option"),
        ({"ids": ["a"]}, topk_sae.UsageError, "1 ids for 536 rows"),
        ({"ids": ["a"] * 536}, topk_sae.DataError, 'row 1: the id "a" was seen before, in row 0'),
        ({"ids": "row"}, topk_sae.UsageError, "one id for each row"),
        ({"device": "tpu"}, topk_sae.UsageError, "tpu"),
        ({"data": np.zeros((4, 4, 4), np.float32)}, topk_sae.DataError, "reshape"),
        ({"data": np.zeros((0, 4), np.float32)}, topk_sae.DataError, "no values"),
        ({"data": np.zeros((4, 4), np.int32)}, topk_sae.DataError, r"int32.*astype\(numpy.float32\)"),
        ({"data": np.ones((4, 4), ">f4")}, topk_sae.DataError, r"astype\(numpy.float32\)"),
        ({"data": np.ones((8, 4), np.float32)[::2]}, topk_sae.DataError, "ascontiguousarray"),
        ({"data": np.ones((8, 4), np.float32, order="F")}, topk_sae.DataError, "ascontiguousarray"),
        ({"data": scipy.sparse.eye(4, format="csr")}, topk_sae.UsageError, "toarray"),
        ({"data": "no/such/file.h5"}, FileNotFoundError, "no/such/file.h5"),
        ({"data": __file__}, topk_sae.DataError, "test_train.py"),
        ({"data": [FILE], "ids": ["a"]}, topk_sae.UsageError, "ids of files"),
    ],
)
def test_errors_are_exceptions_of_one_line(proteins, tmp_path, given, error, text):
    given = {"out": tmp_path / "run", **SMALL, **given}
    data = given.pop("data", proteins[1])
    with pytest.raises(error, match=text) as raised:
        topk_sae.train(data, **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_not_replaced_unless_asked(run, proteins):
    ids, x = proteins
    with pytest.raises(topk_sae.UsageError, match="overwrite"):
        topk_sae.train(x, ids=ids, out=run.path, **SMALL)
    with pytest.raises(topk_sae.UsageError, match="an array"):
        topk_sae.resume(run.path)
    with pytest.raises(topk_sae.UsageError, match="not those the run was started with"):
        topk_sae.resume(run.path, x[::-1].copy(), ids=ids)
    assert same(topk_sae.resume(run.path, x, ids=ids), run)
