"""The networks of the experiments on flows: velocities, and a judge of images whose features distances are taken in."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Judge", "Perceptron", "seeded", "trained_judge"]


class Perceptron(nn.Module):
    """A velocity of points (n, d) and times (n,): hidden layers of one width on both."""

    def __init__(self, d: int, width: int, layers: int, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        sizes = (d + 1, *[width] * layers)
        hidden = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), activation())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, d))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([z, t.unsqueeze(1)], 1))
        return out


class Judge(nn.Module):
    """A small convolutional network that tells classes, and whose last hidden layer is what images are compared by."""

    def __init__(self, side: int, classes: int = 10) -> None:
        super().__init__()
        self.side = side
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images of side x side, in any shape (n, ...), as features (n, 64)."""
        out: Tensor = self.body(x.reshape(len(x), 1, self.side, self.side))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def trained_judge(images: Tensor, labels: Tensor, side: int, seed: int, *, epochs: int = 2) -> Judge:
    """A judge of images (n, ...) with labels (n,), trained by Adam at a rate of 2e-3 in batches of 128."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(side)
    generator = seeded(seed)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(128):
            loss = functional.cross_entropy(judge(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return judge.eval()
