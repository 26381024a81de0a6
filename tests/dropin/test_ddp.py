"""Patched hosts under DDP with two processes: losses and averaged gradients are those of the host."""

import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest

ROOT = Path(__file__).parents[2]
RANK = """
import copy, gc, sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed.nn.functional  # before there is a process group, which its defaults would keep
from torch import distributed, nn

from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bench.hosts.mae import MaskedAutoencoderViT
from bimkern.dropin import patch

rank, file = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)


def compare(make):
    torch.manual_seed(0)
    host = make()
    ours = copy.deepcopy(host)
    patched = patch(ours)
    assert patched.replaced and not patched.left
    wrapped = [nn.parallel.DistributedDataParallel(model) for model in (host, ours)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in wrapped]
    torch.manual_seed(1 + rank)
    images = torch.randint(256, (2, 3, 32, 32)) / 256  # on which HOG of the host does not round
    for step in range(2):
        losses = []
        for model, optimizer in zip(wrapped, optimizers):
            torch.manual_seed(10 * step + rank)
            loss = model(images)
            loss = loss if isinstance(loss, torch.Tensor) else loss[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6 if step == 0 else 1e-5, atol=0)
        for expected, got in zip(host.parameters(), ours.parameters()):
            if expected.grad is not None:
                torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-6)
                ranks = [torch.empty_like(got.grad) for _ in range(2)]
                distributed.all_gather(ranks, got.grad)
                assert torch.equal(*ranks)  # averaged over both
    assert losses[0] != 0


for make in (MaskedAutoencoderViT, LocalMaskedAutoencoderViT):
    compare(make)
gc.collect()  # DistributedDataParallel, which keeps the process group, whose threads end with the last reference to it
distributed.destroy_process_group()
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
# One of gloo that comes back to Python while the interpreter shuts down would abort the process.
assert not [name for name in threads if name.startswith("pt_gloo")]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's loopback interface")
def test_two_processes(tmp_path):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    ranks = [
        commands.Command(
            [*command, str(rank), str(tmp_path / "ranks")], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
