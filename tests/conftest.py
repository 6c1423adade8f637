import warnings

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", help="write the compatibility matrix to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cell(framework, feature, support='attach'): one cell of the compatibility matrix; support "
        "says what it takes, or 'refused', whose sentence the test gives with record_property",
    )


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tests run side by side, on tiny tensors


@pytest.fixture
def silent():
    """Fails if anything warns, whatever the configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
