"""Multinomial logistic regression with L2 on rows that stay on disk.

One convex problem: L-BFGS (Liu and Nocedal, 1989) over all rows at once in float64, with neither steps nor rates to
choose, and the same bits every time. Rows are read in blocks: memory is that of one block, whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.core.embedded import EmbeddedSplit
from pipelines.core.errors import UserError
from pipelines.core.recipe import Training
from pipelines.training.loading.loader import sample_weights
from pipelines.training.observers import Epoch, Observer, best_epoch

_DECAYS = (1000.0, 100.0, 10.0, 1.0, 0.1)
"""Over the number of training rows: 1 is the prior of standard normal weights on standardized embeddings."""
_ITERATIONS = 200
_BLOCK_BYTES = 4 << 20
"""Of float64 rows and what is computed from them: within the last-level cache (twice as fast as 64 MB on one core)."""


@dataclass(frozen=True, kw_only=True)
class Solution(Epoch):
    """A head in the history: each decay that was tried takes the place of an epoch."""

    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear layer on embeddings as they are, float64 on the device."""

    weight: Tensor
    """[num classes, D]"""
    bias: Tensor
    """[num classes]"""


class Problem:
    """The loss over the training rows, as a function of weights on standardized embeddings."""

    def __init__(self, split: EmbeddedSplit, training: Training, num_classes: int, device: torch.device) -> None:
        self.dim = split.embeddings.shape[1]
        self.num_rows = len(split)
        self.device = device
        self._smoothing = training.label_smoothing
        self._num_classes = num_classes
        self._embeddings = torch.from_numpy(split.embeddings)
        self._labels = torch.from_numpy(split.labels)
        weights = torch.from_numpy(sample_weights(split, num_classes, training.class_balance)).double()
        self._weights = weights / weights.sum()  # the loss is their weighted mean
        self.mean, self.scale = self._moments()

    def start(self) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] of nothing learned."""
        weight = torch.zeros((self._num_classes, self.dim), dtype=torch.float64, device=self.device)
        return weight, torch.zeros(self._num_classes, dtype=torch.float64, device=self.device)

    def gradient(self, weight: Tensor, bias: Tensor, decay: float) -> Tensor:
        """Set .grad of weight [C, D] and bias [C] for standardized embeddings; returns the loss, smoothed and decayed.

        By hand: autograd would keep every block until the end.
        """
        head = self.unfolded(weight, bias)
        loss = decay / 2 * weight.square().sum()
        by_row = torch.zeros_like(weight)
        by_class = torch.zeros_like(bias)
        for rows, labels, weights in self._blocks():
            log_shares = (rows @ head.weight.T + head.bias).log_softmax(dim=1)
            one_hot = nn.functional.one_hot(labels, self._num_classes).double()
            targets = one_hot * (1 - self._smoothing) + self._smoothing / self._num_classes
            loss -= weights @ (targets * log_shares).sum(dim=1)
            errors = (log_shares.exp() - targets) * weights[:, None]
            by_row += errors.T @ rows
            by_class += errors.sum(dim=0)
        weight.grad = (by_row - by_class[:, None] * self.mean) * self.scale + decay * weight
        bias.grad = by_class
        return loss

    def unfolded(self, weight: Tensor, bias: Tensor) -> Head:
        """The same function of embeddings as they are."""
        scaled = weight * self.scale
        return Head(weight=scaled, bias=bias - scaled @ self.mean)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D], and one over the standard deviation [D]; 1 where an embedding's number never changes."""
        total, squares = (torch.zeros(self.dim, dtype=torch.float64, device=self.device) for _ in range(2))
        for rows, _, _ in self._blocks():
            total += rows.sum(dim=0)
        mean = total / self.num_rows
        for rows, _, _ in self._blocks():
            squares += (rows - mean).square().sum(dim=0)
        deviation = (squares / self.num_rows).sqrt()
        return mean, torch.where(deviation > 1e-7, 1 / deviation, torch.ones_like(deviation))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Embeddings [n, D] and weights [n] in float64, labels [n]."""
        for part in _parts(self.num_rows, self.dim + 5 * self._num_classes):
            rows, labels, weights = (
                one[part].to(self.device) for one in (self._embeddings, self._labels, self._weights)
            )
            yield rows.double(), labels, weights


def search(
    problem: Problem, val: EmbeddedSplit | None, training: Training, observers: Sequence[Observer]
) -> tuple[list[Solution], Head]:
    """What was tried, from the largest decay down to the first that is worse on validation; and the best head."""
    decays = _decays(training.weight_decay, problem.num_rows, judged=val is not None)
    for observer in observers:
        observer.on_start([], len(decays))
    weight, bias = problem.start()
    best = problem.unfolded(weight, bias)
    history: list[Solution] = []
    for number, decay in enumerate(decays, start=1):
        loss = _solve(problem, weight, bias, decay)  # from the solution of the decay before
        head = problem.unfolded(weight, bias)
        val_loss, val_accuracy = _judge(head, val, problem.device) if val is not None else (loss, 0.0)
        history.append(
            Solution(
                epoch=number,
                train_loss=loss,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                learning_rate=0.0,
                weight_decay=decay,
            )
        )
        for observer in observers:
            observer.on_epoch_end(history)
        if best_epoch(history) < number:
            break
        best = head
    return history, best


def _decays(asked: float, num_rows: int, *, judged: bool) -> list[float]:
    """From the largest; where nothing judges them, the prior's alone."""
    if asked >= 0:
        return [asked]
    return [decay / num_rows for decay in (_DECAYS if judged else (1.0,))]


def _solve(problem: Problem, weight: Tensor, bias: Tensor, decay: float) -> float:
    """Move weight and bias to the minimum; returns the loss there. Raises UserError where it is no number."""
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-8,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(lambda: problem.gradient(weight, bias, decay))  # type: ignore[no-untyped-call]
    loss = float(problem.gradient(weight, bias, decay))
    if not math.isfinite(loss):
        raise UserError("training: the loss is no number; look at features.weight_by and training.weight_decay")
    return loss


def _judge(head: Head, val: EmbeddedSplit, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    loss, right = 0.0, 0
    for part in _parts(len(val), val.embeddings.shape[1] + len(head.bias)):
        rows = torch.from_numpy(val.embeddings[part]).to(device).double()
        labels = torch.from_numpy(val.labels[part]).to(device)
        logits = rows @ head.weight.T + head.bias
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(val), right / len(val)


def _parts(num_rows: int, numbers_per_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (8 * numbers_per_row))
    for start in range(0, num_rows, step):
        yield slice(start, start + step)
