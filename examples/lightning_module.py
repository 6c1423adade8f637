"""Lightning: one callback, and that is all.

pip install lightning
python examples/lightning_module.py
"""

import lightning
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from weightcast.callbacks import LightningCallback


class Regression(lightning.LightningModule):
    """A small network; it remembers its validation losses."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.losses = []

    def training_step(self, batch, index):
        x, y = batch
        return mse_loss(self.net(x), y)  # at θ̂

    def validation_step(self, batch, index):
        x, y = batch
        self.losses.append(mse_loss(self.net(x), y).item())  # at θ

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(epochs=10):
    """Train it; the validation loss before training and after every epoch."""
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(512, 8)
    data = TensorDataset(x, x.square().sum(1, keepdim=True))
    module = Regression()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[LightningCallback(steps=3)],  # the one line
    )
    trainer.fit(module, DataLoader(data, batch_size=32), DataLoader(data, batch_size=512))
    return module.losses


if __name__ == "__main__":
    losses = main()
    print(f"validation loss {losses[0]:.3f} before training, {losses[-1]:.3f} after it")
