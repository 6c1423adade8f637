"""A plain training loop that checkpoints; it is killed as by a power cut: nothing is cleaned up."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightcast

STEPS, MICRO_BATCHES, EVERY = 12, 2, 3
MOMENTS = (2, 4, 9, 5, 12, 11, 13, 3, 1, 14, 0)
"""When it is killed, each time counted from the last checkpoint: at the forecast, within a save,
after a step; and at last it is not."""
KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "NAdam": torch.optim.NAdam,  # observed: its checkpoint holds Δ
    "SGD with momentum": partial(torch.optim.SGD, momentum=0.9),
    "lazy": weightcast.AdamW,
    "in step": partial(weightcast.AdamW, in_step=True),
}


def run(folder: Path, kind: str, kill_at: int = 0) -> None:
    """From the checkpoint in the folder to the end, whose θ is written there.

    Args:
        folder: Of the checkpoint.
        kind: The optimizer.
        kill_at: It kills itself at this of its moments, a few to a step; never if 0.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = KINDS[kind](model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, steps=2)
    file, begin, moment = folder / "checkpoint.pt", 0, 0
    if file.exists():
        saved: dict[str, Any] = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]

    def maybe_killed() -> None:
        nonlocal moment
        moment += 1
        if moment == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for step in range(begin, STEPS):
        generator = torch.Generator().manual_seed(step)
        if step % EVERY == 1:
            model(torch.ones(1, 3))  # the weights are at the forecast; what is saved is not
            assert prediction.is_predicted
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({"step": step, **states}, file.with_suffix(".partial"))
            maybe_killed()
            file.with_suffix(".partial").replace(file)
        for _ in range(MICRO_BATCHES):
            x = torch.randn(8, 3, generator=generator)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            maybe_killed()
            loss.backward()
        optimizer.step()
        maybe_killed()
        optimizer.zero_grad()
    torch.save(model.state_dict(), folder / "end.pt")


def run_and_kill(folder: Path) -> None:
    """All kinds, whole and killed; what became of each process and where it left the checkpoint.

    Each is a fork of this one, in which torch is warm.
    """
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # what an optimizer's first step takes so long for
    found: dict[str, list[tuple[int, int]]] = {}
    for kind, is_killed in itertools.product(KINDS, (False, True)):
        place = folder / kind / ("killed" if is_killed else "whole")
        place.mkdir(parents=True)
        for kill_at in MOMENTS if is_killed else (0,):
            process = os.fork()
            if not process:
                try:
                    run(place, kind, kill_at)
                finally:
                    os._exit(not (place / "end.pt").exists())
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            file = place / "checkpoint.pt"
            step = torch.load(file, weights_only=True)["step"] if file.exists() else 0
            found.setdefault(place.name + kind, []).append((code, step))
    (folder / "found.json").write_text(json.dumps(found))
