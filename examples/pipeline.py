"""A pipeline without bubbles: stages on processes of their own, each looking ahead.

    torchrun --nproc-per-node 4 examples/pipeline.py

The gradient of a stage comes back late, by as many steps as batches are under way in it. Late as it
is; and with a forecast, taken where the weights will be by then.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss

import weightcast
from weightcast.pipeline import AsyncPipeline


def main(predicted, batches=400):
    """Train a stage of a small network; the last stage's mean loss over the last fifty batches."""
    rank, stages = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # every process builds the same model, and keeps its stage
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), *layers, nn.Linear(64, 1))
    cuts = [len(model) * number // stages for number in range(stages + 1)]
    stage = model[cuts[rank] : cuts[rank + 1]]
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    prediction = weightcast.attach(stage, optimizer) if predicted else None
    pipeline = AsyncPipeline(stage, optimizer, mse_loss, prediction=prediction)

    losses = []
    for _ in range(batches):
        inputs = torch.randn(32, 8)  # used in the first stage
        target = (2 * inputs).sin().sum(1, keepdim=True)  # used in the last one
        loss = pipeline.step(inputs, target)
        if loss is not None:
            losses.append(float(loss))
    pipeline.drain()  # no batch is under way any more
    return pipeline.delay, sum(losses[-50:]) / 50 if losses else None


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for predicted in (False, True):
        delay, loss = main(predicted)
        what = f"{delay} steps ahead" if predicted else "where the weights are"
        if dist.get_rank() == 0:
            print(f"the first stage's gradient comes {delay} steps late, and is taken {what}")
        if loss is not None:
            print(f"mean loss of the last fifty batches: {loss:.3f}")
        dist.barrier()
    dist.destroy_process_group()
