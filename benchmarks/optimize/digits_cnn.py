"""The convolutional network of `cnn.py`: what a user would bring.

Trained once on 1,200 of the 1,797 digits of scikit-learn; its weights are kept beside the results.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

_EPOCHS = 30
_SPLIT = 1200


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, scaled to 0 … 1 and shuffled, shape (1797, 1, 8, 8), and labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels[order]


class Net(nn.Module):
    """Three convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * 4, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


def loader() -> DataLoader:
    """Return the training data in batches."""
    images, labels = digits()
    rows = TensorDataset(torch.from_numpy(images[:_SPLIT]), torch.from_numpy(labels[:_SPLIT]))
    return DataLoader(rows, batch_size=64, shuffle=True,
                      generator=torch.Generator().manual_seed(0))  # fmt: skip


def held_back() -> dict[str, np.ndarray]:
    """Return the rows that nothing is trained on."""
    images, labels = digits()
    return {"image": images[_SPLIT:], "label": labels[_SPLIT:]}


def trained() -> nn.Module:
    """Return the trained network; trains it when its weights are not there yet."""
    torch.manual_seed(0)
    net, file = Net(), Path(os.environ.get("DIGITS_CNN", "digits-cnn.pt"))
    if file.exists():
        net.load_state_dict(torch.load(str(file), weights_only=True))
        return net.eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for _ in range(_EPOCHS):
        for images, labels in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()
    torch.save(net.state_dict(), str(file))
    return net.eval()
