"""Two processes, half a batch each, against one process with all of it; and the identity without torch.distributed."""

import json
import os
import subprocess
import sys

import torch
import torch.nn.functional as F

from rddlib.losses import cfd_loss, is_p2p_loss, m_p2p_loss
from rddlib.utils.distributed import all_gather_grad, rank, world_size

N, C_IN, C = 6, 5, 4
NAMES = ("cfd", "is_p2p", "m_p2p")


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(C_IN, C, 1)
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return self.conv(x)


def problem():
    g = torch.Generator().manual_seed(7)
    images, map_T = torch.randn(N, C_IN, 2, 3, generator=g), torch.randn(N, C, 2, 3, generator=g)
    return images, map_T, F.normalize(torch.randn(8, C, generator=g), dim=1)


def losses(map_S, map_T, E):
    yield cfd_loss(map_S.mean((2, 3)), map_T.mean((2, 3)), 0.9)
    yield is_p2p_loss(map_S, map_T, 0.5, impl="chunked", chunk=2)
    yield m_p2p_loss(map_S, map_T, E, 0.5, impl="chunked", chunk=2)


def measure(network, mine):
    """Each loss and the parameters' gradient, with this process's share `mine` of the batch."""
    images, map_T, E = problem()
    found = {}
    for k, name in enumerate(NAMES):
        network.zero_grad()
        map_S = all_gather_grad(network(images[mine]))
        loss = list(losses(map_S, all_gather_grad(map_T[mine]), E))[k]
        loss.backward()
        found[name] = [loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()]).tolist()]
    return found


def worker(folder):
    torch.distributed.init_process_group("gloo")
    share = N // world_size()
    network = torch.nn.parallel.DistributedDataParallel(Network())
    found = measure(network, slice(rank() * share, (rank() + 1) * share))
    with open(f"{folder}/{rank()}.json", "w") as file:
        json.dump({"world": world_size(), **found}, file)
    torch.distributed.barrier()
    os._exit(0)  # at once: gloo's threads sometimes abort a process that tears itself down in the ordinary way


def test_without_processes_everything_is_the_identity():
    x = torch.ones(2, 3)
    assert all_gather_grad(x) is x and world_size() == 1 and rank() == 0


def test_two_processes_equal_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, __file__, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = measure(Network(), slice(0, N))
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["world"] == 2
        for name in NAMES:
            (loss, gradient), (expected_loss, expected_gradient) = found[name], expected[name]
            assert abs(loss - expected_loss) < 1e-5, name
            torch.testing.assert_close(torch.tensor(gradient), torch.tensor(expected_gradient), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(sys.argv[1])
