"""A task of your own for the laboratory: learn what another network computes.

    weightcast compare --task examples/own_task.py:Teacher --seeds 5 --steps 1,3

takes half a minute. `--set width=64` makes the other network wider. Everything else (seeds,
statistics, pictures) works by itself.
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss

from weightcast_lab.tasks import Metric, Preset, Task


class Teacher(Task):
    title = "Learn what another network computes"
    metric = Metric("error (%)", decimals=2, higher_is_better=False)
    preset = Preset(learning_rate=0.005, batch_size=32, epochs=20, seeds=5)

    def __init__(self, source, *, width=32):  # options for --set come after the star
        self.facts = {"data": "a network's answers", "width": width}  # equal: comparable results
        always = torch.Generator().manual_seed(0)  # the same task for every seed
        first, second = (torch.randn(16, width, generator=always) / 4 for _ in range(2))
        self.x = torch.randn(2000, 16, generator=always)
        self.y = torch.tanh(self.x @ first) @ second.mean(0)[:, None]

    def build_model(self):
        hidden = [nn.Linear(64, 64), nn.Tanh()]
        return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), *hidden, nn.Linear(64, 1))

    def to(self, device):
        self.x, self.y = self.x.to(device), self.y.to(device)

    def batches(self, batch_size, generator):  # the first half is for training
        return torch.randperm(1000, generator=generator).split(batch_size)

    def loss(self, model, batch, carried):
        return mse_loss(model(self.x[batch]), self.y[batch]), None

    def evaluate(self, model):
        loss = mse_loss(model(self.x[1000:]), self.y[1000:])
        return loss.item(), 100 * (loss / self.y[1000:].square().mean()).item()
