"""One Markdown report from the logs and JSON files of run-on-gpu.sh: python3 gpu_report.py FOLDER > report.md"""

import json
import sys
from pathlib import Path


def read(folder, name):
    try:
        return (folder / name).read_text(errors="replace").strip()
    except OSError:
        return None


def fenced(text, limit=6000):
    text = text if len(text) <= limit else "...\n" + text[-limit:]
    return f"```\n{text}\n```"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def bench(record):
    parts = []
    for c in record.get("ceilings", []):
        parts.append(
            f"Ceilings: copy {c['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
            f"fill {c['fill_bytes_per_second'] / 1e12:.2f} TB/s, product f32 {c['f32_flops'] / 1e12:.0f}, TF32 {c['tf32_flops'] / 1e12:.0f}, "
            f"bf16 {c['bf16_flops'] / 1e12:.0f} TFLOP/s."
        )
    rows = [
        [s["size"], s["weights"], s["precision"], s["phase"], f"{s['median_ms']:.3f}", f"{s['rows_per_second']:.3g}"]
        for s in record.get("steps", [])
    ]
    if rows:
        parts.append(table(["size", "weights", "precision", "phase", "ms a step", "rows a second"], rows))
    for p in record.get("profiles", []):
        what = f"{p['size']}, {p['weights']}, {p['precision']}, {p['phase']}, {p['input']}"
        share = lambda v: "" if v is None else f"{v:.2f}"
        rows = [
            [k["kernel"], k["launches_a_step"], f"{k['us_a_step']:.1f}", f"{100 * k['share']:.1f} %"]
            + [share(k["memory_share"]), share(k["flops_share"])]
            for k in p["kernels"]
        ]
        header = ["kernel", "launches", "us a step", "of the step", "of the memory ceiling", "of the product ceiling"]
        parts.append(f"### {what}: {p['us_in_launches']:.0f} us in launches\n\n{table(header, rows)}")
    rows = [
        [s["size"], s["scores"], f"{s['us']:.1f}", f"{s['share']:.2f}"] for s in record.get("selections", [])
    ]
    if rows:
        parts.append("### Selection\n\n" + table(["size", "scores", "us", "of the memory ceiling"], rows))
    return parts


def main():
    folder = Path(sys.argv[1])
    parts = ["# topk-sae on a GPU box", "## Summary", fenced(read(folder, "summary.txt") or "nothing ran")]
    parts += ["## Machine", fenced(read(folder, "facts.log") or "not read")]
    for name, title in [
        ("first-step", "A small step of each kind beside the reference, on the card"),
        ("parity", "Kernels and engine beside the reference, on the card"),
        ("goldens", "Golden tensors"),
        ("memcheck", "compute-sanitizer memcheck, a small step of each kind"),
        ("racecheck", "compute-sanitizer racecheck, the same"),
        ("train", "Training beside the CPU, the same bits, kill and resume"),
    ]:
        parts += [f"## {title}", fenced(read(folder, f"{name}.log") or "not run", 4000)]
    parts.append("## Benches")
    for log, figures in [("steps", "cuda_step"), ("profiles", "cuda_profiles")]:
        text = read(folder, f"{figures}.json")
        parts += bench(json.loads(text)) if text else [f"{log}: not measured"]
        if (log := read(folder, f"{log}.log")) and not text:
            parts.append(fenced(log))
    parts.append("## Beside others")
    peers = read(folder, "gpu_vs_peers.md")
    parts.append(peers.replace("\n## ", "\n### ").removeprefix("# ") if peers else "not measured")
    if not peers and (log := read(folder, "peers.log")):
        parts.append(fenced(log))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
