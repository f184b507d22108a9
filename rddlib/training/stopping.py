"""SIGINT and SIGTERM: noted when they come, obeyed between two iterations, by all processes at the same one."""

import signal
import threading

import torch
import torch.distributed as dist

from rddlib.utils.distributed import world_size

AGREE_EVERY = 10  # iterations between the processes' exchanges: each makes them wait for each other


class HeedsSignals:
    """A context in which SIGINT and SIGTERM come to `_note`; outside a program's main thread they stay as they are."""

    _before: dict = {}

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopRequests(HeedsSignals):
    """with StopRequests(device) as stop: ... if signal := stop.requested(number): save, then leave.

    A second SIGINT acts at once, as it would have without this, but not where several processes run, since their launcher
    may pass one on that they have had already. Outside a program's main thread signals stay as they are.
    """

    def __init__(self, device: torch.device):
        self.device, self._signal = device, 0

    def _note(self, number: int, frame) -> None:
        self._signal = number
        if number == signal.SIGINT and world_size() == 1:
            signal.signal(number, self._before[number])

    def requested(self, iteration: int, last: bool = False) -> int:
        """The signal that asks to stop, 0 for none. All processes call it at every iteration and get the same answer."""
        if world_size() == 1:
            return self._signal
        if iteration % AGREE_EVERY and not last:
            return 0
        seen = torch.tensor(self._signal, device=self.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return int(seen)
