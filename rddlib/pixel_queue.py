"""The teacher's pixels, first in, first out: the memory of M_P2P (Section 4.2, Feng et al. 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelQueue(nn.Module):
    """Q in R^{size x channels}: rows are l2-normalised pixels of the teacher's feature maps.

    size: N_q, rows held at most; channels: C of the maps. A new queue is empty; once full, a push overwrites the
    oldest rows. Rows live in a buffer, so they move with `.to(device)` and travel with `state_dict()`.
    Raises ValueError for size or channels below 1.
    """

    def __init__(self, size: int, channels: int):
        super().__init__()
        if size < 1 or channels < 1:
            raise ValueError(f"PixelQueue needs size >= 1 and channels >= 1, got {size} and {channels}")
        self.size, self.channels = size, channels
        self.register_buffer("rows", torch.zeros(size, channels))
        self.pushed = 0  # rows ever pushed; a plain number, so len() never waits for a GPU

    def __len__(self) -> int:
        return min(self.pushed, self.size)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.pushed])

    def set_extra_state(self, state: Tensor) -> None:
        self.pushed = int(state[0])

    @torch.no_grad()
    def push(self, map_teacher: Tensor, per_image: int, generator: torch.Generator | None = None) -> None:
        """Append K = per_image pixels of each map, drawn without replacement, images in order.

        map_teacher: [N, C, H, W], normalised over C here; per_image in 1..H*W. If one push brings more than `size`
        rows, the last `size` of them stay. Raises ValueError for other shapes or a per_image out of range.
        """
        if map_teacher.ndim != 4 or map_teacher.shape[1] != self.channels:
            raise ValueError(f"map_teacher is {tuple(map_teacher.shape)}, expected [N, {self.channels}, H, W]")
        pixels = F.normalize(map_teacher.flatten(2).transpose(1, 2).float(), dim=-1)  # [N, A, C]
        count, area = pixels.shape[:2]
        if not 1 <= per_image <= area:
            raise ValueError(f"per_image is {per_image}, expected 1..{area} (the map's pixels)")
        device = generator.device if generator is not None else "cpu"
        scores = torch.rand(count, area, generator=generator, device=device)
        chosen = scores.topk(per_image, dim=1).indices.to(pixels.device)  # [N, K], a random subset of each image
        self._append(pixels.gather(1, chosen[:, :, None].expand(-1, -1, self.channels)).flatten(0, 1))

    def _append(self, rows: Tensor) -> None:
        self.pushed += max(len(rows) - self.size, 0)  # rows overwritten within this very push still count
        rows = rows[-self.size :]
        slots = (self.pushed + torch.arange(len(rows), device=rows.device)) % self.size
        self.rows[slots] = rows.to(self.rows.dtype)
        self.pushed += len(rows)

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
        if count <= held:
            chosen = torch.randperm(held, generator=generator, device=device)[:count]
        else:
            chosen = torch.randint(held, (count,), generator=generator, device=device)
        return self.rows[chosen.to(self.rows.device)]
