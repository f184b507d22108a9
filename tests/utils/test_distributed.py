"""What processes say to each other, on two of them, and the identity on one."""

import sys

import pytest
import torch
from two_processes import found_by_two, leave

from rddlib.utils.distributed import (
    PATIENCE,
    agreed,
    all_gather_grad,
    broadcast,
    join,
    locked,
    rank,
    sum_over_ranks,
    together,
    wait,
    world_size,
)
from rddlib.utils.errors import UserError

WEIGHTS = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)


def test_on_one_process_everything_is_the_identity(tmp_path):
    x = torch.ones(2, 3)
    assert all_gather_grad(x) is x and sum_over_ranks(x) is x and agreed("a") == "a"
    assert (world_size(), rank()) == (1, 0)
    for nothing in (join, wait, lambda: broadcast(x), lambda: together(None)):
        nothing()
    assert torch.equal(x, torch.ones(2, 3))
    with pytest.raises(UserError, match="a fault"):
        together(UserError("a fault"))
    with locked(tmp_path / "a.safetensors"):
        assert [file.name for file in (tmp_path / ".locks").iterdir()] == ["a"]


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_what_a_launcher_says_is_refused(monkeypatch, missing):
    """As batch systems leave it in the environment."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"WORLD_SIZE is 2 and {missing} is not set"):
        join()


def measure(folder):
    """What this process of two sees."""
    join()
    patience = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
    x = (torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank()).requires_grad_()
    gathered = all_gather_grad(x)
    (gathered * WEIGHTS).sum().backward()  # one global loss, computed by both
    own = torch.full((2,), float(rank()))
    broadcast(own)
    raised = []
    for error in (UserError("the second's fault") if rank() else None, None):
        try:
            together(error)
        except UserError as met:
            raised.append(str(met))
    try:
        all_gather_grad(torch.tensor(1.0))
    except ValueError as refused:
        raised.append(str(refused))
    with locked(folder / "a.safetensors"):
        wait()
    summed = sum_over_ranks(torch.tensor(rank() + 1.0))
    values = {"gathered": gathered, "gradient": x.grad, "broadcast": own, "sum": summed}
    told = {"agreed": agreed(rank()), "raised": raised, "patience": patience.total_seconds()}
    return {name: value.tolist() for name, value in values.items()} | told


@pytest.mark.ci
def test_two_processes_see_what_both_have(tmp_path):
    first = torch.arange(6.0).reshape(2, 3)
    for process, found in enumerate(found_by_two(__file__, tmp_path)):
        assert found["gathered"] == torch.cat([first, first + 10]).tolist()
        # what both losses ask of this process's part: DistributedDataParallel takes the mean over processes of it
        assert found["gradient"] == (2 * WEIGHTS[2 * process : 2 * process + 2]).tolist()
        assert found["sum"] == 3 and found["broadcast"] == [0, 0] and found["agreed"] == 0
        assert found["patience"] == PATIENCE.total_seconds()
        assert found["raised"][0] == "the second's fault" and "shape []" in found["raised"][1]


if __name__ == "__main__":
    from pathlib import Path

    leave(measure(Path(sys.argv[1])), sys.argv[1])
