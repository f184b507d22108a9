"""Which images an iteration uses and which random numbers: both follow from (seed, step, rank) alone.

So nothing random needs to be saved: a run resumed at step k draws what the uninterrupted one would have drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Step:
    """What one iteration knows: its number, the rows of the data set it uses, and its random streams.

    rows: on the CPU; generator: differs by rank (noise, times); shared: the same on every rank (draws from the pixel
    queue); logged: whether this iteration's terms are recorded.
    """

    number: int
    rows: Tensor
    generator: torch.Generator
    shared: torch.Generator
    logged: bool

    def parts(self, count: int) -> Iterator["Step"]:
        """The step with its rows in `count` equal parts; the random streams run on from part to part."""
        for rows in self.rows.chunk(count):
            yield replace(self, rows=rows)


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, such as (seed, step, rank): streams of different numbers are unrelated.

    Stages and streams each have a number of their own, after the seed or at the end; 1 to 13 are taken.
    """
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 31)) * 0x94D049BB133111EB & (2**64 - 1)
    return (mixed ^ (mixed >> 29)) >> 1


class Epochs:
    """Row numbers of batch after batch: each epoch a fresh permutation that follows from (seed, epoch) alone."""

    def __init__(self, rows: int, batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, 1))
            self._epoch, self._order = epoch, torch.randperm(self.rows, generator=generator)
        return self._order

    def batch(self, step: int) -> Tensor:
        """Row numbers [batch_size] of iteration `step`."""
        position, taken = step * self.batch_size, []
        while sum(map(len, taken)) < self.batch_size:
            epoch, offset = divmod(position, self.rows)
            missing = self.batch_size - sum(map(len, taken))
            taken.append(self._permutation(epoch)[offset : offset + missing])
            position += len(taken[-1])
        return torch.cat(taken)
