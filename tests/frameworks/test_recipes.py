"""Training scripts in the manner of well-known ones, under attach and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frameworks.loops import Attached, Loop, Script, difference, gan_iteration
from tests.frameworks.test_pytorch import double

pytestmark = [  # timm's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]


def images(count: int = 24, size: int = 8) -> Tensor:
    return torch.rand(count, 1, size, size, dtype=torch.float64)


def mnist(loop: Loop) -> nn.Module:
    """pytorch/examples/mnist: dropout, StepLR by the epoch, and a test after each."""
    model = double(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(36, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    running = loop(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    data, target = images(), torch.randint(0, 10, (24,))
    for _ in range(3):
        for x, y in zip(data.split(8), target.split(8), strict=True):
            running.iterate(lambda x=x, y=y: F.nll_loss(model(x), y).backward())
        model.eval()
        with torch.no_grad():
            tested = F.nll_loss(model(data), target)
        model.train()
        scheduler.step()
    model.register_buffer("tested", tested)
    return model


def vae(loop: Loop) -> nn.Module:
    """pytorch/examples/vae: a draw in the forward, and samples of the decoder after each epoch."""

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 4), nn.Linear(2, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encoder(x.flatten(1)).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            return self.decoder(z).sigmoid(), mean, log_variance

    model = Vae().double()
    running = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0))
    for _ in range(2):
        for x in images().split(8):

            def backward(x: Tensor = x) -> None:
                again, mean, log_variance = model(x)
                kld = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
                (F.binary_cross_entropy(again, x.flatten(1), reduction="sum") + kld).backward()

            running.iterate(backward)
        with torch.no_grad():
            sample = model.decoder(torch.ones(1, 2, dtype=torch.float64)).sigmoid()
    model.register_buffer("sample", sample)
    return model


def dcgan(loop: Loop) -> nn.Module:
    """pytorch/examples/dcgan: Adam with β₁ = 0.5, BatchNorm, the fake of the generator's graph."""
    generator = double(
        nn.ConvTranspose2d(2, 4, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = double(nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4))
    nets = nn.ModuleList([generator, discriminator])
    running = [
        loop(net, torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.5, 0.999))) for net in nets
    ]
    for real in images().split(8):
        noise = torch.randn(8, 2, 1, 1, dtype=torch.float64)
        gan_iteration(nets, running, noise, real)
    return nets


class Gpt(nn.Module):
    """One block, weights of embedding and head tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(16, 8), nn.Embedding(8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.full((8, 8), -torch.inf, dtype=torch.float64).triu(1)
        x = self.embedding(tokens[:, :-1]) + self.position.weight
        logits = self.head(self.block(x, mask, is_causal=True))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def nano_gpt(loop: Loop) -> nn.Module:
    """nanoGPT: decay for matrices alone, its own schedule, micro-steps, clipping, estimates."""
    model = Gpt().double()
    params = [p for p in model.parameters()]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    running = loop(model, optimizer)
    tokens = torch.randint(0, 16, (6, 2, 4, 9))
    estimates = []
    for step, micro_steps in enumerate(tokens):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / 8))
        if step % 2 == 0:
            model.eval()
            with torch.no_grad():
                estimates.append(model(tokens[0, 0]))
            model.train()

        def backward(micro_steps: Tensor = micro_steps) -> None:
            for batch in micro_steps:
                (model(batch) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)

        running.iterate(backward)
    model.register_buffer("estimates", torch.stack(estimates))
    return model


def timm_train(loop: Loop) -> nn.Module:
    """timm's train.py: its factories, scheduler by update, clipping, model EMA, validation."""
    timm = pytest.importorskip("timm")
    optim, utils = pytest.importorskip("timm.optim"), pytest.importorskip("timm.utils")
    scheduler_of = pytest.importorskip("timm.scheduler").CosineLRScheduler
    model = timm.create_model("test_resnet", num_classes=4, in_chans=1).double()
    optimizer = optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    average = utils.ModelEmaV3(model, decay=0.5)
    scheduler = scheduler_of(
        optimizer, t_initial=6, warmup_t=2, warmup_lr_init=1e-4, t_in_epochs=False
    )
    running = loop(model, optimizer)
    for update, x in enumerate(images(24, 32).split(8), 1):

        def backward(x: Tensor = x) -> None:
            F.cross_entropy(model(x), torch.arange(8) % 4).backward()
            utils.dispatch_clip_grad(model.parameters(), 1.0, "norm")

        running.iterate(backward)
        average.update(model, step=update)
        scheduler.step_update(update)
    if loop is Attached:
        assert not running.prediction.is_predicted
    return nn.ModuleList([model, average])


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=pytest.mark.cell("Training scripts", name), id=script.__name__)
        for script, name in [
            (mnist, "PyTorch's example mnist"),
            (vae, "PyTorch's example vae"),
            (dcgan, "PyTorch's example dcgan"),
            (nano_gpt, "nanoGPT"),
            (timm_train, "timm's train.py"),
        ]
    ],
)
def test_a_training_script(script: Script) -> None:
    """Written by us in their manner."""
    assert difference(script) < 1e-9
