from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from weightcast_lab.errors import LabError
from weightcast_lab.models import cifar
from weightcast_lab.models.cifar import NETWORKS, build_network, parameter_count
from weightcast_lab.models.lstm import LSTMLanguageModel

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"

# at full width and at a quarter
PARAMETERS = {
    "vgg11": (9_225_610, 578_410),
    "vgg11_bn": (9_231_114, 579_786),
    "resnet34": (21_282_122, 1_334_618),
    "densenet121": (6_956_426, 452_714),
    "inception_v3": (21_806_058, 1_373_346),
}


def test_every_network_is_here():
    assert PARAMETERS.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_shapes(name):
    for width, parameters in zip((1.0, 0.25), PARAMETERS[name], strict=True):
        model = build_network(name, width).eval()
        assert parameter_count(model) == parameters
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient_and_the_seed_fixes_them(name):
    def build():
        torch.manual_seed(7)
        return build_network(name, 0.125)

    model = build()
    for a, b in zip(model.parameters(), build().parameters(), strict=True):
        assert torch.equal(a, b)
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("layers", "parameters"), [(1, 16_395_200), (2, 19_780_400)])
def test_the_lstms_of_the_paper(layers, parameters):
    """650 units: embedding and output of 10,000 words, and 4·650·(650 + 650 + 2) a layer."""
    assert parameters == 2 * 10_000 * 650 + 10_000 + layers * 4 * 650 * (650 + 650 + 2)
    assert parameter_count(LSTMLanguageModel(10_000, 650, layers, 0.5)) == parameters


def test_impossible_networks_are_refused():
    with pytest.raises(LabError, match="did you mean 'vgg11'"):
        build_network("vgg1")
    for width in (0.3, 0.0, -1.0, 0.001):
        with pytest.raises(LabError, match=f"width={width:g} is not possible"):
            build_network("resnet34", width)


def test_the_page_shows_these_numbers():
    assert PAGE.read_text() == cifar.page()
