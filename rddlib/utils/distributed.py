"""The batch across processes: `extractor -> all_gather_grad -> losses` makes relations span every rank's images.

Convention: every rank gathers the whole batch and computes the same global loss, a mean over it. The gradient of
`all_gather_grad` sums what all ranks' losses ask of this rank's part, and DistributedDataParallel then averages over
ranks, so the parameters get exactly the gradient one process would have computed on the whole batch: nothing is scaled
by the number of ranks, anywhere. Without torch.distributed, or with one rank, everything here is the identity.
"""

import contextlib
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from filelock import FileLock
from torch import Tensor

from rddlib.utils.errors import UserError

# one waits while the first writes, scores or stands before a lock: NCCL's own are 10 minutes
PATIENCE = timedelta(hours=2)


def world_size() -> int:
    """The number of processes: 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 to world_size() - 1: the launcher's word where torch.distributed is not initialised yet."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meet the other processes that torchrun, accelerate launch or notebook_launcher started; nothing where it is one."""
    if world_size() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {missing[0]} is not set, so processes cannot meet: start them "
                "with torchrun or accelerate launch, or unset WORLD_SIZE"
            )
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def wait() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def agreed(answer):
    """The first process's answer (anything that can be pickled), on all of them."""
    if world_size() == 1:
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, 0)
    return answers[0]


def together(error: UserError | None) -> None:
    """Raise on every process what one of them met (None: nothing), so that none waits for one that has gone."""
    errors = [str(error) if error else None]
    if world_size() > 1:
        errors = [None] * world_size()
        dist.all_gather_object(errors, str(error) if error else None)
    if met := [words for words in errors if words]:
        raise UserError(met[0]) from error


def locked(path: Path) -> contextlib.AbstractContextManager:
    """The lock of what is made at `path`, so that two runs never make the same; a run's first process holds it for all."""
    if rank() > 0:
        return contextlib.nullcontext()
    locks = path.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / path.stem)


def all_gather_grad(x: Tensor) -> Tensor:
    """Concatenate x over ranks along dim 0, in rank order, with gradient: [n, ...] -> [n world_size, ...].

    All ranks must call, with one shape, dtype and kind of device. Raises ValueError for a scalar.
    """
    if world_size() == 1:
        return x
    if x.ndim == 0:
        raise ValueError("x has shape [], expected at least one dimension to gather along")
    # The functional collectives have carried both names; backward is a reduce-scatter (sum).
    gather = getattr(functional, "all_gather_single_autograd", None) or functional.all_gather_tensor_autograd
    return gather(x.contiguous(), 0, dist.group.WORLD)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks, without gradient; x itself on one process."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast(x: Tensor) -> None:
    """Overwrite x on every rank with rank 0's; nothing on one process."""
    if world_size() > 1:
        dist.broadcast(x, 0)
