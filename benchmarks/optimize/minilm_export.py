"""Export the MiniLM-L6 sentence encoder to ONNX, by both exporters of torch, with rows of text.

Needs an environment with torch, transformers and onnxscript, and a folder with the model's
weights in the layout of transformers:

    python benchmarks/optimize/minilm_export.py WEIGHTS OUT

Writes `minilm-traced.onnx` (the old exporter), `minilm-dynamo.onnx` (torch.export), and
`rows-32.npz` and `rows-128.npz`: sentences of Python's own manual, tokenised and padded. One
row is one sentence or paragraph; no row occurs twice.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertModel

N_ROWS = 800


class Encoder(torch.nn.Module):
    """Tokens to one vector per sentence: mean over the tokens, length one."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(
            folder, attn_implementation="eager", add_pooling_layer=False
        )

    def forward(self, input_ids, attention_mask, token_type_ids):
        states = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def export(folder: str, out: Path) -> None:
    model = Encoder(folder).eval()
    sample = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in range(3))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"vector": {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(
            model, sample, str(out / "minilm-traced.onnx"), input_names=names,
            output_names=["vector"], dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
        batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=2, max=512)
        torch.onnx.export(
            model, sample, str(out / "minilm-dynamo.onnx"), input_names=names,
            output_names=["vector"], dynamo=True, external_data=False,
            dynamic_shapes=tuple({0: batch, 1: tokens} for _ in names),
        )  # fmt: skip


def texts(longest: bool) -> list[str]:
    """Return paragraphs or sentences of Python's manual as it is installed with Python."""
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics.values())
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", whole)]
    prose = [p for p in paragraphs if len(re.findall(r"[a-z]{3,}", p)) >= 6]
    found = prose if longest else [s for p in prose for s in re.split(r"(?<=[.!?]) ", p)]
    low, high = (250, 900) if longest else (40, 140)
    return list(dict.fromkeys(t for t in found if low <= len(t) <= high))


def rows(folder: str, out: Path, length: int) -> None:
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    chosen = texts(longest=length > 64)
    order = np.random.default_rng(0).permutation(len(chosen))[:N_ROWS]
    encoded = tokenizer.encode_batch([chosen[i] for i in order])
    np.savez(
        out / f"rows-{length}.npz",
        input_ids=np.array([item.ids for item in encoded], np.int64),
        attention_mask=np.array([item.attention_mask for item in encoded], np.int64),
        token_type_ids=np.array([item.type_ids for item in encoded], np.int64),
    )
    used = np.array([sum(item.attention_mask) for item in encoded])
    print(f"{length}: {len(encoded)} rows, {used.mean():.1f} tokens on average")


if __name__ == "__main__":
    weights, target = sys.argv[1], Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for size in (32, 128):
        rows(weights, target, size)
    export(weights, target)
