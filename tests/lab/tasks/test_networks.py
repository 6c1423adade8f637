from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from weightcast_lab.errors import LabError
from weightcast_lab.tasks.networks.cifar import NETWORKS, build_network, parameter_count
from weightcast_lab.tasks.networks.lstm import LSTMLanguageModel
from weightcast_lab.tasks.networks.transformer import TransformerLanguageModel

PAGE = Path(__file__).parents[3] / "docs" / "networks.md"

# at full width and at a quarter
PARAMETERS = {
    "vgg11": (9_225_610, 578_410),
    "vgg11_bn": (9_231_114, 579_786),
    "resnet34": (21_282_122, 1_334_618),
    "densenet121": (6_956_426, 452_714),
    "inception_v3": (21_806_058, 1_373_346),
    "resnet10": (4_903_242, 308_826),
    "resnet10_plain": (4_900_362, 308_106),
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


def test_without_batch_norm_nothing_is_normalised_and_nothing_grows():
    torch.manual_seed(0)
    plain = build_network("resnet10_plain", 0.25)
    assert not any("Norm" in type(module).__name__ for module in plain.modules())
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        first = plain.relu(plain.bn1(plain.conv1(images)))
        last = plain.layer4(plain.layer3(plain.layer2(plain.layer1(first))))
    assert 0.25 < last.std() / first.std() < 4
    # an image's logits do not depend on the others of its batch
    assert torch.allclose(plain(images)[:2], plain(images[:2]), atol=1e-5)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return TransformerLanguageModel(11, width=8, layers=2, heads=2, window=9, dropout=0.0)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_transformer_sees_the_past_and_the_present_only(transformer, is_training):
    """In training as in evaluation, where torch takes another path."""
    transformer.train(is_training)
    tokens = torch.randint(11, (9, 3))
    changed = tokens.clone()
    changed[5] = (changed[5] + 1) % 11
    with torch.no_grad():
        before, after = transformer(tokens)[0], transformer(changed)[0]
        shorter = transformer(tokens[:5])[0]
    assert before.shape == (9, 3, 11)
    assert torch.allclose(before[:5], after[:5], atol=1e-6)
    assert not torch.allclose(before[5:], after[5:], atol=1e-6)
    assert torch.allclose(before[:5], shorter, atol=1e-5)


def test_a_transformer_knows_places_and_its_layers_begin_different(transformer):
    tokens = torch.full((9, 1), 3)
    logits = transformer(tokens)[0]
    assert not torch.allclose(logits[1], logits[8], atol=1e-5)
    first, second = (layer.linear1.weight for layer in transformer.blocks.layers)
    assert not torch.equal(first, second)
    assert "mask" not in " ".join(transformer.state_dict())
