"""Several processes on the CPUs of this machine, which talk over Gloo."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Body = Callable[[int, str], None]

# Its children leave by os._exit. An interpreter that ends, as with spawn, may abort: when a thread
# of Gloo frees DDP's last all-reduce, and in it what the backward pass stashed for Python, it wants
# the GIL, and a finalizing interpreter ends such a thread by unwinding, here out of a destructor.
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["weightcast.pipeline", "tests.oracles.pipeline"])


@contextmanager
def gloo(rank: int, world: int, store: Path) -> Iterator[None]:
    """The process group, in one of its processes; the store is a file that is not there yet."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        yield
        dist.barrier()  # the last to leave would find its peers gone
    finally:
        dist.destroy_process_group()


def _run(rank: int, world: int, folder: Path, bodies: list[tuple[Body, str]]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Accelerate would take a GPU for each process
    with gloo(rank, world, folder / f"store{world}"):
        for body, name in bodies:
            body(rank, name)


def spawn(world: int, folder: Path, *bodies: tuple[Body, str]) -> None:
    """Processes are slow to start: several bodies share them. What one raises is raised here."""
    mp.start_processes(_run, (world, folder, bodies), nprocs=world, start_method="forkserver")
