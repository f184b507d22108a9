"""What images are scored against: other images, or published statistics of their features."""

import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import rddlib
from rddlib.data import data_folder
from rddlib.evaluation.drawing import DrawnImages
from rddlib.evaluation.features import Shards, complete, extract
from rddlib.evaluation.images import Source, open_images, write_npz
from rddlib.evaluation.networks import Network
from rddlib.evaluation.receipt import Protocol
from rddlib.evaluation.statistics import Gaussian, gaussian_of, holds_statistics, read_statistics
from rddlib.utils.checkpoint import digest
from rddlib.utils.distributed import agreed, locked, rank, wait
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

WORTH_KEEPING = 2_000  # statistics of more images than this are kept, whatever the network


class Reference:
    """A reference to score against: anything `open_images` takes, or an .npz with mu and sigma as EDM and ADM publish them.

    Statistics that took long (Inception's, or of many images) are kept in the data folder's cache/features, and with KID or
    precision and recall the features too; both may be deleted at any time. `close` removes what is not kept.
    """

    def __init__(self, source: Source, batch_size: int, device: torch.device | str):
        path = Path(source) if isinstance(source, (str, Path)) else None
        self.batch_size, self.device, self._temporary = batch_size, device, None
        self.path = path if path and path.is_file() and holds_statistics(path) else None
        self.images = None if self.path else open_images(source)
        if isinstance(self.images, DrawnImages):
            raise UserError(f"{self.images.name} is drawn: a reference needs given images, such as `rdd sample` writes")

    @cached_property
    def statistics(self) -> Gaussian:
        """The published statistics."""
        return read_statistics(self.path)

    @cached_property
    def described(self) -> tuple[str, str]:
        """(description, sha256) for the receipt."""
        if self.images is not None:
            return f"{self.images.name}, {counted(len(self.images), 'image')}", self.images.sha256
        arrays = {name: torch.from_numpy(array) for name, array in vars(self.statistics).items()}
        return f"statistics {self.path.name}", digest(arrays, "")

    @property
    def counted(self) -> tuple[str, float]:
        """(name, number of images), the number infinite for published statistics."""
        return (str(self.path), float("inf")) if self.path else (f"reference {self.images.name}", len(self.images))

    def check(self, name: str, shape: tuple[int, int, int], network: Network, metrics: Sequence[str]) -> None:
        """Raise UserError if it cannot serve these metrics of images of (C, H, W); name: of the images."""
        if self.path:
            if needing := ", ".join(metric for metric in ("kid", "pr", "pfd") if metric in metrics):
                raise UserError(f"{needing} needs images, {self.path} holds statistics: give a reference of images")
            if (found := len(self.statistics.mu)) != network.features:
                raise UserError(
                    f"{self.path} has {found} dimensions, the {network.name} has {network.features}: take statistics made "
                    "with the same network"
                )
            return
        network.check(self.counted[0], self.images.shape)
        if tuple(shape) != (own := tuple(self.images.shape)):
            raise UserError(f"{name}: images {tuple(shape)}, the {self.counted[0]} {own}: give both the same size")

    def close(self) -> None:
        """Remove what is not worth keeping."""
        if self._temporary is not None and rank() == 0:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _place(self, network: Network, protocol: Protocol, kind: str) -> Path:
        """The file of its statistics; the features' files lie in a folder of the same name without suffix."""
        facts = f"{rddlib.__version__} {self.images.sha256} {len(self.images)} {self.images.shape} {protocol} {kind}"
        facts += f" {network.name} {network.sha256}" if kind == "features" else ""
        home = data_folder() / "cache" / "features"
        if not network.resizes and len(self.images) <= WORTH_KEEPING:
            if self._temporary is None:
                self._temporary = Path(agreed(tempfile.mkdtemp(prefix="rdd-reference-") if rank() == 0 else ""))
            home = self._temporary
        return home / f"{digest({}, facts)[:16]}.npz"

    def _extracted(self, place: Path, network: Network, protocol: Protocol, kind: str) -> Shards:
        shards = Shards(place.with_suffix(""), len(self.images), self.batch_size, (kind,))
        extract(self.images, network, [protocol], shards, self.device)
        return shards

    def gaussian(self, network: Network, protocol: Protocol, kind: str, kept: bool) -> Gaussian:
        """The Gaussian of its "features" or raw "pixels"; kept: keep the features' files, for `rows`."""
        if self.path:
            return self.statistics
        place = self._place(network, protocol, kind)
        with locked(place):
            if not agreed(complete(place)):
                shards = self._extracted(place, network, protocol, kind)
                wait()
                if rank() == 0:
                    write_npz(place, **vars(gaussian_of(shards.read(protocol, kind))))
                    if not (kept and kind == "features"):
                        shutil.rmtree(shards.folder)
                wait()
            return read_statistics(place)

    def rows(self, network: Network, protocol: Protocol, scratch: Path) -> Tensor:
        """Its features [M, D], memory-mapped from the file `scratch`, on the first process; elsewhere an empty tensor."""
        place = self._place(network, protocol, "features")
        with locked(place):
            shards = self._extracted(place, network, protocol, "features")
            return shards.mapped(protocol, "features", scratch) if rank() == 0 else torch.empty(0)
