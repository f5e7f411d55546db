"""What the benches share: the machine's description, embeddings from HDF5, Markdown tables."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def machine(threads):
    """Enough to tell whether two results may be compared."""
    model = platform.processor() or "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    root = Path(__file__).resolve().parent
    # A pack for a GPU box says what it was built from; a repository around it may be at another commit.
    packed = root.parent / "commit"
    commit = packed.read_text().split()[0] if packed.is_file() else output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changed = not packed.is_file() and output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_average_at_start": os.getloadavg()[0],
        "commit": (commit or "unknown") + (" with changes" if changed else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def machine_line(info):
    return (
        f"{info['cpu']}, {info['cores']} cores, {info['threads']} threads, {info['isa']}, "
        f"torch {info['torch']}, commit {info['commit'][:12]}, {info['date']}"
    )


def output(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def load_rows(path, limit=None):
    """(ids, float32 matrix) of an HDF5 file: one 2-D matrix with ids, or a dataset an id.

    An id's 2-D dataset gives a row per residue, each under that id. `limit` stops early.
    """
    import h5py

    names, strings = [], {}
    with h5py.File(path, "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                if item.dtype.kind == "f":
                    names.append(name)
                elif item.ndim == 1 and item.dtype.kind in "OS":
                    strings[name.rsplit("/", 1)[-1].lower()] = item

        file.visititems(visit)
        if len(names) == 1 and file[names[0]].ndim == 2:
            rows = np.asarray(file[names[0]][:limit], dtype=np.float32)
            fitting = {n: d for n, d in strings.items() if len(d) == file[names[0]].shape[0]}
            # Labels may be strings too: a name that says "id" or "accession" comes first.
            best = sorted(fitting, key=lambda n: (n not in ("ids", "id", "accession", "accessions"), n))
            if not best:
                return [str(i) for i in range(len(rows))], rows
            return list(fitting[best[0]].asstr()[: len(rows)]), rows
        ids, parts, count = [], [], 0
        for name in sorted(names):
            part = np.atleast_2d(np.asarray(file[name][()], dtype=np.float32))
            ids += [name] * len(part)
            parts.append(part)
            count += len(part)
            if limit is not None and count >= limit:
                break
    if not parts:
        raise SystemExit(f"{path}: no floating-point dataset in it")
    return ids[:limit], np.concatenate(parts)[:limit]


def markdown_table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_results(folder, name, record, text):
    """`name`.json (everything, raw) and `name`.md (the table) in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # File names alone: where they lay says nothing to a reader of the results.
    for key, value in record.get("arguments", {}).items():
        if isinstance(value, str) and "/" in value:
            record["arguments"][key] = Path(value).name
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    print(text)
    print(f"\nwritten: {folder / name}.json, {folder / name}.md")
