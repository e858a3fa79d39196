"""Torch modules and batches as a user brings them; tests name them by import string."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

N_TRAIN = 600


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,000 rows of 12 features, and which of three directions each is nearest to."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1000, 12)).astype(np.float32)
    labels = np.argmax(features @ rng.normal(size=(12, 3)), axis=1)
    return features, labels


def held_back() -> dict[str, np.ndarray]:
    features, labels = rows()
    return {"x": features[N_TRAIN:], "label": labels[N_TRAIN:]}


def loader() -> DataLoader:
    features, labels = rows()
    data = TensorDataset(torch.from_numpy(features[:N_TRAIN]), torch.from_numpy(labels[:N_TRAIN]))
    return DataLoader(data, batch_size=100)


class Dense(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Encoder(nn.Module):
    """Three blocks of attention over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.place = nn.Parameter(torch.zeros(12, 8))
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8 * 12, 3)

    def forward(self, x):
        hidden = self.encoder(self.embed(x.unsqueeze(-1)) + self.place)
        return self.head(hidden.flatten(1))


def _fitted(net: nn.Module, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(epochs):
        for features, labels in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(features), labels).backward()
            optimizer.step()
    return net.eval()


@functools.cache
def _dense() -> nn.Module:
    torch.manual_seed(0)
    return _fitted(Dense(), 20, 3e-3)


@functools.cache
def _encoder() -> nn.Module:
    torch.manual_seed(0)
    return _fitted(Encoder(), 5, 1e-2)


def dense() -> nn.Module:
    return _dense()


def encoder() -> nn.Module:
    return _encoder()


def student() -> nn.Module:
    torch.manual_seed(1)
    return Dense(16)


def tied() -> nn.Module:
    """Return a module of which no channel may go."""
    torch.manual_seed(0)
    return _fitted(nn.Sequential(nn.Linear(12, 3)), 5, 1e-2)


def nan_loss(outputs, targets):
    return outputs.sum() * float("nan")


def nan_metric(outputs, labels):
    return float("nan")


def no_batches() -> list:
    return []


def an_iterator():
    return iter(loader())
