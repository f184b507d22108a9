"""What is remembered first in, first out: the teacher's pixels for M_P2P (Section 4.2, Feng et al. 2024), and others."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.utils.text import joined

# Where the released RDD code departs from its paper; each can be switched on alone, to measure what it does.
RELEASED_RULES = {
    "queue_rows": "a batch [N, C, H, W] is viewed as [C, -1] and transposed: no row is a pixel, nor a unit vector",
    "queue_per_batch": "per_image rows are drawn from the whole batch, not from each image",
    "queue_wrap": "a push that does not fit overwrites the end of the queue and the next one starts at row 0",
    "queue_start": "a new queue is full of random unit vectors",
    "queue_draw": "the same evenly spaced rows are drawn each time; the others are never read",
}


def check_released(names: Collection[str], known: Collection[str]) -> frozenset[str]:
    """The names as a set. Raises ValueError for one that is not known."""
    if unknown := set(names) - set(known):
        raise ValueError(f"released names {joined(sorted(unknown))}, expected some of {joined(known)}")
    return frozenset(names)


class Ring(nn.Module):
    """The last `size` rows [*shape]: new ones overwrite the oldest.

    They live in a buffer `rows`, so they move with `.to(device)` and travel with `state_dict()`.
    """

    def __init__(self, size: int, *shape: int):
        super().__init__()
        self.size, self.pushed = size, 0  # rows ever pushed: a plain number, so len() never waits for a GPU
        self.register_buffer("rows", torch.zeros(size, *shape))

    def __len__(self) -> int:
        """Rows held."""
        return min(self.pushed, self.size)

    @torch.no_grad()
    def append(self, rows: Tensor) -> None:
        """Remember rows [N, *shape], of more than `size` the last."""
        self.pushed += max(len(rows) - self.size, 0)  # rows overwritten within this very push still count
        rows = rows[-self.size :]
        slots = (self.pushed + torch.arange(len(rows), device=rows.device)) % self.size
        self.rows[slots] = rows.to(self.rows.dtype)
        self.pushed += len(rows)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.pushed])

    def set_extra_state(self, state: Tensor) -> None:
        self.pushed = int(state[0])


class PixelQueue(Ring):
    """Q in R^{size x channels}: rows are l2-normalised pixels of the teacher's feature maps.

    A new queue is empty; once full, a push overwrites the oldest rows.

    Args:
        size: N_q, rows held at most.
        channels: C of the maps.
        released: names of RELEASED_RULES to follow instead of the paper.

    Raises ValueError for size or channels below 1 and for unknown rules.
    """

    def __init__(self, size: int, channels: int, released: Collection[str] = ()):
        if size < 1 or channels < 1:
            raise ValueError(f"PixelQueue needs size >= 1 and channels >= 1, got {size} and {channels}")
        super().__init__(size, channels)
        self.channels, self.released = channels, check_released(released, RELEASED_RULES)
        if "queue_start" in self.released:
            self.append(F.normalize(torch.randn(size, channels), dim=1))

    @torch.no_grad()
    def push(self, map_teacher: Tensor, per_image: int, generator: torch.Generator | None = None) -> None:
        """Append K = per_image pixels of each map, drawn without replacement, images in order.

        If one push brings more than `size` rows, the last `size` of them stay.

        Args:
            map_teacher: [N, C, H, W], normalised over C here.
            per_image: 1..H*W.
            generator: of the draws.

        Raises ValueError for other shapes or a per_image out of range.
        """
        if map_teacher.ndim != 4 or map_teacher.shape[1] != self.channels:
            raise ValueError(f"map_teacher is {tuple(map_teacher.shape)}, expected [N, {self.channels}, H, W]")
        candidates = self._candidates(F.normalize(map_teacher.float(), dim=1))  # [images, rows each, C]
        count, area = candidates.shape[:2]
        if not 1 <= per_image <= area:
            raise ValueError(f"per_image is {per_image}, expected 1..{area} (the pixels to choose from)")
        device = generator.device if generator is not None else "cpu"
        scores = torch.rand(count, area, generator=generator, device=device)
        chosen = scores.topk(per_image, dim=1).indices.to(candidates.device)  # a random subset of each image
        rows = candidates.gather(1, chosen[:, :, None].expand(-1, -1, self.channels)).flatten(0, 1)
        self._append_released(rows) if "queue_wrap" in self.released else self.append(rows)

    def _candidates(self, maps: Tensor) -> Tensor:
        if "queue_rows" in self.released:
            pixels = maps.contiguous().view(self.channels, -1).T.unflatten(0, (len(maps), -1))
        else:
            pixels = maps.flatten(2).transpose(1, 2)  # [N, A, C]
        return pixels.flatten(0, 1)[None] if "queue_per_batch" in self.released else pixels

    def _append_released(self, rows: Tensor) -> None:
        rows = rows[-self.size :]
        start, fits = self.pushed % self.size, self.pushed % self.size + len(rows) < self.size
        if fits:
            self.rows[start : start + len(rows)] = rows
            self.pushed += len(rows)
        else:
            self.rows[self.size - len(rows) :] = rows
            self.pushed += self.size - start  # back at row 0

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw V = count rows at random -> [count, C].

        Without replacement; while the queue holds fewer than `count` rows, with replacement. Raises ValueError for
        count < 1 or an empty queue.
        """
        if count < 1:
            raise ValueError(f"count is {count}, expected at least 1")
        held = len(self)
        if held == 0:
            raise ValueError("the queue is empty: push a teacher's map first")
        device = generator.device if generator is not None else "cpu"
        if "queue_draw" in self.released:
            chosen = torch.arange(count, device=self.rows.device) * max(held // count, 1) % held
        elif count <= held:
            chosen = torch.randperm(held, generator=generator, device=device)[:count]
        else:
            chosen = torch.randint(held, (count,), generator=generator, device=device)
        return self.rows[chosen.to(self.rows.device)]
