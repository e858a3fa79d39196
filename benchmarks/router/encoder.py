"""Fit the upper layers of a sentence encoder to the router's utterances, and write it.

    python benchmarks/router/encoder.py FOLDER [--work WORK] [--processes 2]

FOLDER holds `model.safetensors`, `tokenizer.json` and `vocab.txt` of all-MiniLM-L6-v2 (Apache 2.0).
Needs torch, transformers, tokenizers and safetensors; an hour and a half of CPU time. The lower
layers stay as they are, so what they say of each utterance is computed once. One tenth of the
utterances is held back, as in `train.py`; for the calibration there every fold is also answered by
an encoder that has not seen it (`unseen.npz`). Every fit is kept in WORK: a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from train import FOLDS
from transformers import BertConfig, BertModel

from fairlead.router import features, wordpiece
from fairlead.router.corpus import Utterance, load_corpus
from fairlead.router.ordering import SHORT
from fairlead.router.scene import observe
from fairlead.router.surface import surface_of

TARGET = Path(features.__file__).parent / "data" / "encoder.npz"
UNSEEN = Path(__file__).parent / "unseen.npz"
LAYERS, KEPT, WIDTH = 6, 3, 384
BATCH = 32
EPOCHS, EPOCHS_FOLD = 5, 4
FITS = 2
MISSED = 0.1
"""Share of the pieces that a step of the fit does not see: no answer may hang on one word."""
RATE, HEAD_RATE = 2e-4, 2e-3
SMOOTHING = 0.05
GAIN = 3.0
"""The heads read the mean of the last layer times this: their steps would be too small."""
OUTSIDE = 0.3
"""Log odds added to `out-of-scope`: what people ask elsewhere is more varied than any corpus."""


def whole(folder: Path) -> BertModel:
    config = BertConfig(
        vocab_size=30522,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * WIDTH,
    )
    config._attn_implementation = "eager"
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.eval()


def padded(states: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(item) for item in states)
    values = torch.zeros(len(states), longest, WIDTH)
    mask = torch.zeros(len(states), longest)
    for row, item in enumerate(states):
        values[row, : len(item)] = torch.from_numpy(item.astype(np.float32))
        mask[row, : len(item)] = 1
    return values, mask


def lower_states(model: BertModel, folder: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """Return what the layers that stay say of each text, shape (n_pieces, WIDTH)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pieces = {text: wordpiece.cut(tokenizer.encode(text).ids) for text in set(texts)}
    states = {}
    ranked = sorted(pieces, key=lambda text: (len(pieces[text]), text))
    for at in range(0, len(ranked), BATCH):
        some = ranked[at : at + BATCH]
        longest = max(len(pieces[text]) for text in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)
        mask = torch.zeros(len(some), longest, dtype=torch.long)
        for row, text in enumerate(some):
            ids[row, : len(pieces[text])] = torch.tensor(pieces[text])
            mask[row, : len(pieces[text])] = 1
        with torch.no_grad():
            told = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        for row, text in enumerate(some):
            kept = told.hidden_states[KEPT][row, : len(pieces[text])]
            states[text] = kept.numpy().astype(np.float16)
    return states


class Upper(nn.Module):
    """The layers that are fitted and the two heads."""

    def __init__(self, layers: nn.ModuleList, n_answers: int) -> None:
        super().__init__()
        self.layers = layers
        self.drop = nn.Dropout(0.2)
        self.answers = nn.Linear(WIDTH, n_answers)
        self.skills = nn.Linear(WIDTH, len(SHORT))

    def forward(self, states: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        values, mask = padded(states)
        if self.training:
            seen = (torch.rand(mask.shape) > MISSED).float()
            seen[:, 0] = 1
            mask = mask * seen
        hidden = (1 - mask)[:, None, None, :] * -1e9
        for layer in self.layers:
            found = layer(values, attention_mask=hidden)
            values = found[0] if isinstance(found, tuple) else found
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        mean = GAIN * self.drop(mean)
        return self.answers(mean), self.skills(mean)


def answers_of(item: Utterance) -> tuple[str, ...]:
    return item.skills or (item.label,)


def targets(items: list[Utterance], answers: list[str]) -> tuple[torch.Tensor, ...]:
    first = torch.zeros(len(items), len(answers))
    parts = torch.zeros(len(items), len(SHORT))
    for row, item in enumerate(items):
        for name in answers_of(item):
            first[row, answers.index(name)] = 1 / len(answers_of(item))
        for name in item.skills:
            parts[row, list(SHORT).index(name)] = 1
    first = first * (1 - SMOOTHING) + SMOOTHING / len(answers)
    return first, parts, torch.tensor([float(item.kind == "route") for item in items])


def batches(sizes: list[int]) -> list[list[int]]:
    """Return the rows in batches of about equal length, all in random order."""
    order = list(range(len(sizes)))
    random.shuffle(order)
    found = []
    for at in range(0, len(order), BATCH * 16):
        some = sorted(order[at : at + BATCH * 16], key=lambda row: sizes[row])
        found += [some[first : first + BATCH] for first in range(0, len(some), BATCH)]
    random.shuffle(found)
    return found


def loss_of(upper, states, wanted, rows) -> torch.Tensor:
    first, parts, is_route = (item[rows] for item in wanted)
    answers, skills = upper([states[row] for row in rows])
    loss = -(first * torch.log_softmax(answers, 1)).sum(1).mean()
    wrong = nn.functional.binary_cross_entropy_with_logits(skills, parts, reduction="none")
    return loss + (wrong.sum(1) * is_route).sum() / is_route.sum().clamp(min=1)


def begun(model: BertModel, n_answers: int) -> Upper:
    """Return the upper layers of the public encoder with the same heads every time."""
    torch.manual_seed(0)
    fresh = BertModel(model.config, add_pooling_layer=False)
    fresh.load_state_dict(model.state_dict())
    return Upper(fresh.encoder.layer[KEPT:], n_answers)


@dataclass(frozen=True)
class Task:
    """One fit: of everything, or of all folds but one."""

    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        part = "whole" if self.fold is None else f"without_{self.fold}"
        return f"{part}_{self.seed}"


def tasks() -> list[Task]:
    return [*(Task(seed) for seed in range(FITS)), *(Task(0, fold) for fold in range(FOLDS))]


def fit(model: BertModel, items, states, answers: list[str], task: Task) -> Upper:
    """Fit the upper layers; the seed decides on the order of the utterances and on dropout."""
    epochs = EPOCHS if task.fold is None else EPOCHS_FOLD
    upper = begun(model, len(answers)).train()
    random.seed(task.seed)
    torch.manual_seed(task.seed)
    heads = [*upper.answers.parameters(), *upper.skills.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": upper.layers.parameters(), "lr": RATE}, {"params": heads, "lr": HEAD_RATE}],
        weight_decay=0.01,
    )
    steps = epochs * (len(items) // BATCH + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / (0.1 * steps)) * max(0.02, 1 - step / steps)
    )
    wanted = targets(items, answers)
    own = [states[item.text] for item in items]
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in batches([len(item) for item in own]):
            loss = loss_of(upper, own, wanted, rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(upper.layers.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        took_s = time.perf_counter() - start
        said = f"epoch {epoch}: loss {total / len(items):.3f}, {took_s:.0f} s"
        print(f"{task.name} {said}", flush=True)
    return upper.eval()


def logits(upper: Upper, states: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found = []
    with torch.no_grad():
        for at in range(0, len(states), BATCH):
            found.append([part.numpy() for part in upper(states[at : at + BATCH])])
    return np.concatenate([item[0] for item in found]), np.concatenate([item[1] for item in found])


def averaged(model: BertModel, states: list[dict[str, torch.Tensor]]) -> Upper:
    """Return the mean of the weights of several fits."""
    upper = begun(model, len(states[0]["answers.bias"]))
    upper.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return upper.eval()


def packed(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return 8-bit rows and their scales."""
    values = matrix.detach().numpy()
    scales = (np.maximum(np.abs(values).max(1), 1e-9) / 127).astype(np.float32)
    return np.round(values / scales[:, None]).astype(np.int8), scales


def packed_layer(layer: nn.Module, number: int) -> dict[str, np.ndarray]:
    state = layer.state_dict()
    own = [f"attention.self.{name}" for name in ("query", "key", "value")]
    mix = torch.cat([state[f"{name}.weight"] for name in own])
    parts = {
        "mix": (mix, torch.cat([state[f"{name}.bias"] for name in own])),
        **{
            name: (state[f"{place}.weight"], state[f"{place}.bias"])
            for name, place in (
                ("join", "attention.output.dense"),
                ("widen", "intermediate.dense"),
                ("narrow", "output.dense"),
            )
        },
    }
    norms = [
        state[f"{place}.LayerNorm.{part}"]
        for place in ("attention.output", "output")
        for part in ("weight", "bias")
    ]
    found = {f"{number}.norms": torch.stack(norms).numpy()}
    for name, (matrix, bias) in parts.items():
        rows, scales = packed(matrix)
        found[f"{number}.{name}"] = rows
        found[f"{number}.{name}_scales"] = scales
        found[f"{number}.{name}_bias"] = bias.numpy()
    return found


def write(model: BertModel, upper: Upper, answers: list[str], folder: Path) -> None:
    rows, scales = packed(model.embeddings.word_embeddings.weight)
    state = model.embeddings.state_dict()
    places = state["position_embeddings.weight"][: wordpiece.MAX_PIECES]
    places = places + state["token_type_embeddings.weight"][0]
    layers = [*model.encoder.layer[:KEPT], *upper.layers]
    bias = upper.answers.bias.detach().numpy().copy()
    bias[answers.index("!out-of-scope")] += OUTSIDE
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n")
    found = {
        "words": np.frombuffer(vocabulary.encode(), np.uint8),
        "pieces": rows,
        "piece_scales": scales,
        "places": places.numpy().astype(np.float16),
        "norms": torch.stack([state["LayerNorm.weight"], state["LayerNorm.bias"]]).numpy(),
        "n_layers": np.array(len(layers)),
        "answers": np.array(answers),
        "answer_weights": GAIN * upper.answers.weight.detach().numpy(),
        "answer_bias": bias,
        "skills": np.array(list(SHORT)),
        "skill_weights": GAIN * upper.skills.weight.detach().numpy(),
        "skill_bias": upper.skills.bias.detach().numpy(),
    }
    for number, layer in enumerate(layers):
        found |= packed_layer(layer, number)
    np.savez(TARGET, **found)
    print(f"{TARGET.stat().st_size:,} bytes")


def write_unseen(corpus, answers, first, parts) -> None:
    first[:, answers.index("!out-of-scope")] += OUTSIDE
    np.savez_compressed(
        UNSEEN,
        digests=np.array([item.digest for item in corpus]),
        answers=np.array(answers),
        first=first.astype(np.float16),
        skills=np.array(list(SHORT)),
        parts=parts.astype(np.float16),
    )


class Work:
    """All fits of one corpus; what is done is kept in a folder."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.model = whole(folder)
        self.corpus = [item for item in load_corpus() if not item.is_held_back]
        said = {item.text: surface_of(observe(item.text)) for item in self.corpus}
        found = lower_states(self.model, folder, list(said.values()))
        self.states = {text: found[surface] for text, surface in said.items()}
        self.answers = sorted({name for item in self.corpus for name in answers_of(item)})
        self.work = work

    def path(self, task: Task) -> Path:
        return self.work / f"{task.name}.pt"

    def do(self, task: Task) -> None:
        if self.path(task).exists():
            return
        torch.set_num_threads(1)
        items = [item for item in self.corpus if item.fold % FOLDS != task.fold]
        upper = fit(self.model, items, self.states, self.answers, task)
        unfinished = self.path(task).with_suffix(".part")
        torch.save(upper.state_dict(), unfinished)
        unfinished.replace(self.path(task))

    def fitted(self, fold: int | None = None) -> Upper:
        """Return the mean of the fits of everything, or of all folds but one."""
        found = [task for task in tasks() if task.fold == fold]
        return averaged(self.model, [torch.load(self.path(task)) for task in found])


WORK: list[Work] = []
"""What the processes share: it is there before they are forked, so nothing is copied to them."""


def do(task: Task) -> None:
    WORK[0].do(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("router-encoder"))
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    work = Work(asked.folder, asked.work)
    WORK.append(work)
    with multiprocessing.get_context("fork").Pool(asked.processes) as pool:
        for _ in pool.imap_unordered(do, tasks()):
            pass
    write(work.model, work.fitted(), work.answers, asked.folder)
    first = np.zeros((len(work.corpus), len(work.answers)), np.float32)
    parts = np.zeros((len(work.corpus), len(SHORT)), np.float32)
    for fold in range(FOLDS):
        rows = [at for at, item in enumerate(work.corpus) if item.fold % FOLDS == fold]
        states = [work.states[work.corpus[at].text] for at in rows]
        first[rows], parts[rows] = logits(work.fitted(fold), states)
    write_unseen(work.corpus, work.answers, first, parts)


if __name__ == "__main__":
    main()
