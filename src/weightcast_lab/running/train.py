"""The training loop: one for every task, optimizer and device."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from weightcast_lab.environment import environment, processor, use_precision
from weightcast_lab.files import Warn
from weightcast_lab.methods.method import Method
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.folders import RunFiles
from weightcast_lab.running.foresight import Foresight
from weightcast_lab.running.jobs import Run
from weightcast_lab.running.readings import Averages, read
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.tasks import Task

OnStep = Callable[[int, int, float], None]
"""Called after every step with the steps taken, the steps in all, and the batch's loss."""

Gradients = Sequence[Tensor | None]
"""The gradient of every parameter, in order; None where there is none."""


class Diverged(Exception):
    """The loss, a gradient or what is measured of validation or test data is not finite."""


def batch_order(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's batches: the same for every method."""
    return torch.Generator().manual_seed(seed << 20 | epoch)


def cosine_factor(step: int, steps: int, warmup: float) -> float:
    """What the learning rate of a step (from 0) is multiplied with; `warmup` is a share of all."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / rising if step + 1 < rising else 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / (steps - rising))))


def _schedule(
    optimizer: Optimizer, recipe: Recipe, method: Method, steps: int
) -> tuple[LRScheduler, bool]:
    """The learning rate's schedule, and whether it advances every step or every epoch."""
    if not recipe.cosine:
        milestones = recipe.milestones if method.is_scheduled else ()
        return MultiStepLR(optimizer, milestones, gamma=0.1), False
    rising = math.ceil(recipe.warmup * steps)

    def factor(step: int) -> float:
        # a method that replaces the schedule's fall still rises
        known = step if method.is_scheduled else min(step, rising)
        return cosine_factor(known, steps, recipe.warmup)

    return LambdaLR(optimizer, factor), True


def train(
    run: Run,
    task: Task,
    recipe: Recipe,
    files: RunFiles,
    on_step: OnStep,
    warn: Warn,
    until: float = math.inf,
) -> RunRecord | None:
    """Train one run to its end, from its last checkpoint if there is one.

    Initial weights, batches and dropout depend on the seed alone, not on the method. The model is
    evaluated before the first step and after every epoch; a checkpoint follows every evaluation.

    With a delay D, step t computes the gradient of batch t and applies that of batch t - D, as in a
    pipeline without bubbles and in the analyses of delayed SGD (Arjevani, Shamir and Srebro, ALT
    2020). Before step D none has arrived: the weights stay, θ_0 = ... = θ_D. The gradients of the
    last D batches are never applied, so that every delay sees as many batches.

    Args:
        run: The run.
        task: What it learns.
        recipe: How.
        files: Where it is kept.
        on_step: Is told about every step.
        warn: Is told about damaged files.
        until: Stop at the last checkpoint before this time (`time.time()`).

    Returns:
        What it came to, for the caller to save. None if it stopped before the end.

    Raises:
        LabError: a checkpoint cannot be written.
    """
    device = torch.device(recipe.device)
    use_precision(recipe.precision)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, recipe.precision == "bf16")
    torch.manual_seed(run.seed)
    model = task.build_model().to(device)
    if recipe.compiled:
        model.compile()
    optimizer = run.method.make_optimizer(model, recipe.learning_rate, recipe.hyperparameters)
    prediction = run.method.predict(model, optimizer, recipe.delay)
    batches = task.batches(recipe.batch_size, batch_order(run.seed, 0))
    steps = recipe.epochs * len(batches) - recipe.delay
    schedule, is_stepwise = _schedule(optimizer, recipe, run.method, steps)
    averages = Averages(model, recipe.averages, steps) if recipe.averages else None
    parameters = list(model.parameters())  # to look for them at every step takes a while
    under_way: deque[Gradients] = deque()
    environments: list[dict[str, str]] = []
    columns = ("step", "train_loss", "validation_loss", "metric", "seconds")
    history: dict[str, list[Any]] = {name: [] for name in columns}
    if recipe.horizons:
        history["foresight"] = []
    epoch = step = 0
    seconds = cpu_seconds = 0.0
    if (checkpoint := files.load_checkpoint(device, warn)) is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        if averages:
            averages.load_state_dict(checkpoint["averages"])
        under_way.extend(checkpoint.get("under_way", ()))
        environments = checkpoint["environments"]
        _set_random_state(checkpoint["random"])
        history, epoch = checkpoint["history"], checkpoint["epoch"]
        step, seconds = history["step"][-1], history["seconds"][-1]
        cpu_seconds = checkpoint.get("cpu_seconds", 0.0)
    if (here := environment(recipe.device)) not in environments:
        environments.append(here)
    started, cpu_started = time.perf_counter() - seconds, time.process_time() - cpu_seconds

    def evaluate(train_loss: float | None, foresight: Foresight | None) -> None:
        if hasattr(optimizer, "eval"):  # its weights to evaluate are others than those to train
            optimizer.eval()
        with autocast():
            loss, metric = _evaluate(model, task)
        row = (step, train_loss, loss, metric, time.perf_counter() - started)
        for name, value in zip(columns, row, strict=True):
            history[name].append(value)
        if recipe.horizons:
            history["foresight"].append(foresight.result() if foresight else None)

    diverged_at = None
    try:
        if not history["step"]:
            evaluate(None, None)
        last_epoch = 0.0
        while epoch < recipe.epochs:
            began = time.time()
            if began + last_epoch > until:
                return None
            model.train()
            if hasattr(optimizer, "train"):
                optimizer.train()
            batches = task.batches(recipe.batch_size, batch_order(run.seed, epoch))
            foresight = None
            if recipe.horizons:
                foresight = Foresight(model, optimizer, recipe.horizons, len(batches))
            total, carried = 0.0, None
            for batch in batches:
                with autocast():
                    loss, carried = task.loss(model, batch, carried)
                for p in parameters:
                    p.grad = None
                loss.backward()
                value = _checked_loss(parameters, loss, recipe.clip_norm)
                if _exchange_gradients(parameters, under_way, recipe.delay):
                    optimizer.step()
                    if is_stepwise:
                        schedule.step()
                    if averages:
                        averages.after_step()
                    if foresight:
                        foresight.after_step()
                step, total = step + 1, total + value
                on_step(step, recipe.epochs * len(batches), value)
            evaluate(total / len(batches), foresight)
            epoch += 1
            if not is_stepwise:
                schedule.step()
            files.save_checkpoint(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    **({"averages": averages.state_dict()} if averages else {}),
                    "under_way": list(under_way),
                    "environments": environments,
                    "random": _random_state(),
                    "history": history,
                    "epoch": epoch,
                    "cpu_seconds": time.process_time() - cpu_started,
                }
            )
            last_epoch = time.time() - began
        model.eval()
        with torch.no_grad(), autocast():
            test = {name: float(value) for name, value in task.test(model).items()}
            readings = read(model, task, prediction, averages) if averages else {}
        found = [*test.values(), *(loss for place in readings.values() for loss in place.values())]
        if not all(map(math.isfinite, found)):
            raise Diverged
    except Diverged:
        diverged_at, test, readings = step, {}, {}
    return RunRecord(
        configuration=files.configuration,
        method=run.method.key,
        seed=run.seed,
        environments=environments,
        diverged_at=diverged_at,
        history=history,
        test=test,
        readings=readings,
        weights=_digest(model),
        memory=run.method.memory(model, optimizer),
        cpu_seconds=time.process_time() - cpu_started,
        processor=processor(recipe.device),
        package=run.method.package,
    )


def _checked_loss(parameters: list[nn.Parameter], loss: Tensor, clip_norm: float | None) -> float:
    """Clip the gradients; the loss as a number, if it and all the gradients are finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    value, size = torch.stack([loss.detach(), norm]).tolist()  # one wait for the device, not two
    if not (math.isfinite(value) and math.isfinite(size)):
        raise Diverged
    return float(value)


def _exchange_gradients(
    parameters: list[nn.Parameter], under_way: deque[Gradients], delay: int
) -> bool:
    """Send the gradients on their way and give the parameters those of `delay` steps ago.

    They are clipped already, as they would be on arrival. None is copied: the loop lets go of them
    before the next backward, which makes new ones.

    Returns:
        Whether any have arrived.
    """
    under_way.append([p.grad for p in parameters])
    if len(under_way) <= delay:
        return False
    for p, gradient in zip(parameters, under_way.popleft(), strict=True):
        p.grad = gradient
    return True


@torch.no_grad()
def _evaluate(model: nn.Module, task: Task) -> tuple[float, float]:
    model.eval()
    loss, metric = map(float, task.evaluate(model))
    if not (math.isfinite(loss) and math.isfinite(metric)):
        raise Diverged
    return loss, metric


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


def _digest(model: nn.Module) -> str:
    """A short hash of all weights and buffers: equal if and only if the runs ended alike."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]
