"""A plain loop: accumulation, a schedule, an average of the weights, evaluation, a checkpoint.

    python examples/plain_loop.py

Weight prediction is one line; nothing else knows of it.
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import weightcast


def main(steps=3, epochs=20):
    """Learn a function of 8 numbers: losses by epoch, that of the average, and a checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    weightcast.attach(model, optimizer, steps=steps)  # the one line

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    x = torch.randn(640, 8)
    y = x.square().sum(1, keepdim=True)
    batches = list(zip(x[:512].split(32), y[:512].split(32), strict=True))

    losses = []
    for _ in range(epochs):
        model.train()
        for number, (inputs, targets) in enumerate(batches, start=1):
            (mse_loss(model(inputs), targets) / 2).backward()  # both halves at the same θ̂
            if number % 2 == 0:
                optimizer.step()  # at θ
                optimizer.zero_grad()
                average.update_parameters(model)  # of θ
        schedule.step()
        model.eval()
        with torch.no_grad():
            losses.append(mse_loss(model(x[512:]), y[512:]).item())  # at θ
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}  # θ, and plain
    with torch.no_grad():
        averaged = mse_loss(average(x[512:]), y[512:]).item()
    return losses, averaged, checkpoint


if __name__ == "__main__":
    losses, averaged, checkpoint = main()
    print(f"validation loss {losses[0]:.3f} after the first epoch, {losses[-1]:.3f} after the last")
    print(f"averaged weights: {averaged:.3f}")
    print(f"the checkpoint holds {', '.join(checkpoint['optimizer']['state'][0])} of each weight")
