"""A task of your own for the laboratory: tell two spirals apart.

    weightcast compare --task examples/own_task.py:Spirals --seeds 3 --steps 1,3

`--set turns=3` winds them further. Everything else (seeds, statistics, pictures) works by itself.
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

from weightcast_lab.tasks import Metric, Preset, Task


class Spirals(Task):
    title = "Two spirals, a small network"
    metric = Metric("accuracy (%)", decimals=1, higher_is_better=True)
    preset = Preset(learning_rate=0.01, batch_size=32, epochs=20, seeds=3)

    def __init__(self, source, *, turns=1.5):  # options for --set come after the star
        self.facts = {"data": "two spirals", "turns": turns}  # equal facts: comparable results
        angle = torch.linspace(0.5, 6.28 * turns, 400).repeat(2)
        self.y = torch.arange(800) // 400 * 1.0
        angle = torch.stack([angle + 3.14 * self.y, angle])
        self.x = torch.stack([angle[0].cos(), angle[0].sin()]).mul(angle[1] / 2).T

    def build_model(self):
        hidden = [nn.Linear(64, 64), nn.ReLU()]
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), *hidden, nn.Linear(64, 1))

    def to(self, device):
        self.x, self.y = self.x.to(device), self.y.to(device)

    def batches(self, batch_size, generator):  # every other point is for training
        return (2 * torch.randperm(400, generator=generator)).split(batch_size)

    def loss(self, model, batch, carried):
        return loss_of(model(self.x[batch])[:, 0], self.y[batch]), None

    def evaluate(self, model):
        logits, y = model(self.x[1::2])[:, 0], self.y[1::2]
        return loss_of(logits, y).item(), 100 * ((logits > 0) == (y > 0)).double().mean().item()
