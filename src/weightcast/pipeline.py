r"""A pipeline without bubbles: every process has a stage, and none waits for a batch to come back.

PipeDream's one-forward-one-backward (Narayanan et al., SOSP 2019). Of P stages, stage r has so many
batches under way that it applies every gradient

$$D_r = P - 1 - r$$

updates after the forward that it belongs to. With a prediction, that forward looks D_r steps ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from weightcast.displacement.reach import STEPS
from weightcast.errors import InvalidArgumentError, WeightcastError
from weightcast.prediction import WeightPrediction


class AsyncPipeline:
    r"""This process's stage of an asynchronous pipeline over all processes, in the order of ranks.

    `step` runs a batch's forward and, once the pipeline is full, the backward of the batch that has
    come back, and steps the stage's own optimizer: batch t is applied to $\theta_t$ after its
    forward at $\theta_{t-D}$. A forward at $\hat\theta = \theta_{t-D} - D\Delta$ forecasts the very
    weights that its gradient will be applied to. D is the number of batches under way in the stage:
    fewer than P - 1 - r while the pipeline fills.

    With `stash`, a backward runs at the weights of its forward, predicted or not: PipeDream's
    stashing, at the price of D + 1 copies of them. Without, it runs at the weights of its own time,
    with the activations of its forward, as in SpecTrain, XPipe and PipeOptim, and nothing is
    copied. SpecTrain (arXiv 1809.02839), and XPipe (arXiv 1911.04610) with one micro-batch, look
    ⌊r/2⌋ steps further at both moments, to where the stage will be when the batch leaves the
    pipeline: `beyond=rank // 2`.

    Activation checkpointing within a stage undoes stashing: it computes anew at the weights of the
    backward's time.

    Args:
        stage: What this process computes, a slice of an `nn.Sequential` for example; it takes and
            gives one tensor, whose shape is the same for all batches.
        optimizer: Of the stage's parameters.
        loss: From the last stage's output and the target to a scalar; the others ignore it.
        prediction: What `attach(stage, optimizer)` returned, whose `steps` are set before every
            forward; None for late gradients as they are.
        stash: Whether a backward runs at the weights of its forward.
        beyond: Steps to look ahead at in addition, in forward and backward.

    Raises:
        WeightcastError: there is no process group.
        InvalidArgumentError: `prediction` belongs to another optimizer; there is `beyond` and no
            `prediction`; a parameter group with `"prediction_steps"` of its own.

    Example:
        On every rank, under `torchrun`:

        ```python
        dist.init_process_group()
        rank, stages = dist.get_rank(), dist.get_world_size()
        stage = model[cuts[rank] : cuts[rank + 1]]
        optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
        prediction = weightcast.attach(stage, optimizer)
        pipeline = AsyncPipeline(stage, optimizer, loss, prediction=prediction)
        for inputs, target in batches:  # the first stage reads inputs, the last one targets
            value = pipeline.step(inputs, target)
        pipeline.drain()  # now stage and optimizer can be saved, and evaluated
        ```
    """

    def __init__(
        self,
        stage: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Any], Tensor],
        *,
        prediction: WeightPrediction | None = None,
        stash: bool = True,
        beyond: float = 0.0,
    ) -> None:
        if not dist.is_initialized():
            raise WeightcastError(
                "a pipeline needs its processes: call torch.distributed.init_process_group first."
            )
        if prediction is not None and prediction.optimizer is not optimizer:
            raise InvalidArgumentError(
                "prediction belongs to another optimizer: give what attach(stage, optimizer) "
                "returned for this stage."
            )
        if prediction is None and beyond:
            what = "give what attach(stage, optimizer) returned"
            raise InvalidArgumentError(f"beyond={beyond:g} needs a prediction: {what}.")
        usual = optimizer.defaults.get(STEPS)  # weightcast.AdamW's
        if prediction and any(g.get(STEPS) != usual for g in optimizer.param_groups):
            what = f"a parameter group names {STEPS} of its own: leave them out"
            raise InvalidArgumentError(f"{what}, a stage's place in the pipeline sets them.")
        self.stage, self.optimizer, self.loss = stage, optimizer, loss
        self.prediction, self.beyond = prediction, beyond
        self.rank, self.stages = dist.get_rank(), dist.get_world_size()
        self.stash = stash and bool(self.delay or beyond)  # else nothing moves before the backward
        # a group for each direction: with one, NCCL would wait for the wrong message first
        self._onwards, self._back = dist.new_group(), dist.new_group()
        self._under_way: deque[tuple[Tensor, Tensor]] = deque()
        self._sent: dict[Any, tuple[Any, Tensor]] = {}
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._device = next(stage.parameters()).device

    @property
    def delay(self) -> int:
        """D: how many updates lie between a forward and the use of its gradient."""
        return self.stages - 1 - self.rank

    def step(self, inputs: Tensor | None = None, target: Any = None) -> Tensor | None:
        """Send a batch on its way, and take the step of the one that comes back.

        Args:
            inputs: Of the first stage; the others get theirs from the stage before.
            target: For the loss, of the last stage.

        Returns:
            The batch's loss in the last stage, else None.

        Raises:
            InvalidArgumentError: the output's shape is not that of the first batch.
        """
        loss = self._forward(inputs, target)
        if len(self._under_way) > self.delay:
            self._backward()
        return loss

    def drain(self) -> None:
        """Take the steps of all batches under way: nothing is left that a checkpoint would lack.

        All stages drain after the same batch. What follows fills the pipeline anew.
        """
        while self._under_way:
            self._backward()
        for work, _ in self._sent.values():
            work.wait()
        self._sent.clear()

    def _forward(self, inputs: Tensor | None, target: Any) -> Tensor | None:
        if self.rank > 0:
            inputs = self._receive(self.rank - 1, self._onwards, "input").requires_grad_()
        assert inputs is not None
        steps = len(self._under_way) + self.beyond
        with self._ahead(steps), saved_tensors_hooks(self._keeper(), _taken):
            output: Tensor = self.stage(inputs)
            if self.delay == 0:
                output = self.loss(output, target)
        if self.delay:
            self._send(output.detach(), self.rank + 1, self._onwards, "output")
        self._under_way.append((inputs, output))
        return None if self.delay else output.detach()

    def _backward(self) -> None:
        inputs, output = self._under_way.popleft()
        gradient = self._receive(self.rank + 1, self._back, "output") if self.delay else None
        self.optimizer.zero_grad()
        with self._ahead(0.0 if self.stash else self.beyond):
            torch.autograd.backward(output, gradient)
        if self.rank > 0:
            assert inputs.grad is not None
            self._send(inputs.grad, self.rank - 1, self._back, "input")
        self.optimizer.step()

    @contextmanager
    def _ahead(self, steps: float) -> Iterator[None]:
        """So many steps ahead, if there is a prediction."""
        if self.prediction is None:
            yield
            return
        self.prediction.steps = steps
        try:
            with self.prediction.predicted():
                yield
        finally:
            self.prediction.steps = self.delay + self.beyond  # in force while the optimizer steps

    def _keeper(self) -> Callable[[Tensor], Any]:
        """What autograd keeps of a forward: of a weight its place, and a copy of it to stash."""
        weights = {p.untyped_storage().data_ptr() for p in self.stage.parameters()}
        copies: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Any:
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place not in weights:
                return tensor
            if self.stash:
                storage = copies[place] = copies.get(place) or storage.clone()
            where = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
            lazy = (tensor.is_conj(), tensor.is_neg())  # its memory holds other numbers
            return torch.empty(0, dtype=tensor.dtype, device=tensor.device), where, lazy

        return keep

    def _send(self, tensor: Tensor, to: int, group: Any, what: str) -> None:
        shape = (tensor.shape, tensor.dtype)
        if what not in self._shapes:  # the first batch tells the next stage what will come
            self._shapes[what] = shape
            dist.send_object_list([shape], to, group, self._device)
        if self._shapes[what] != shape:
            raise InvalidArgumentError(
                f"the stage's {what} has shape {tuple(shape[0])}, in the first batch it had "
                f"{tuple(self._shapes[what][0])}: a pipeline takes batches of one size; drop a "
                "smaller last one."
            )
        if group in self._sent:
            self._sent[group][0].wait()
        tensor = tensor.contiguous()
        self._sent[group] = dist.isend(tensor, to, group), tensor

    def _receive(self, source: int, group: Any, what: str) -> Tensor:
        if what not in self._shapes:
            told: list[Any] = [None]
            dist.recv_object_list(told, source, group, self._device)
            self._shapes[what] = told[0]
        shape, dtype = self._shapes[what]
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        dist.recv(tensor, source, group)
        return tensor


def _taken(kept: Any) -> Tensor:
    """What `keep` kept; of a weight without a copy, what stands there now."""
    if isinstance(kept, Tensor):
        return kept
    tensor, where, (is_conj, is_neg) = kept
    weight: Tensor = tensor.set_(*where)
    weight = weight.conj() if is_conj else weight
    return torch._neg_view(weight) if is_neg else weight
