"""Several processes with DDP: each makes the same forecast, and nothing more is communicated.

torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss

import weightcast


def main(steps=3, epochs=20):
    """The loss after every epoch, and whether all processes ended with the same weights."""
    is_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if is_gpu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).to(device)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    weightcast.attach(model, optimizer, steps=steps)  # after wrapping

    x = torch.randn(512, 8, device=device)
    y = x.square().sum(1, keepdim=True)
    batches = list(zip(x[rank::world].split(32), y[rank::world].split(32), strict=True))
    losses = []
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            mse_loss(model(inputs), targets).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(mse_loss(model(x), y).item())
    mine = nn.utils.parameters_to_vector(model.parameters()).detach()
    everybodys = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everybodys, mine)
    return losses, all(torch.equal(mine, other) for other in everybodys)


if __name__ == "__main__":
    losses, agree = main()
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.3f} after the first epoch, {losses[-1]:.3f} after the last")
        which = "the same" if agree else "different"
        print(f"{which} weights in {dist.get_world_size()} processes")
    dist.destroy_process_group()
