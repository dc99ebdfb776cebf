"""A network that is not there is noticed at once, and what is here already is taken."""

import socket
import threading

import pytest
import torch

from graphsurgery.errors import SpecError
from graphsurgery.models import build
from graphsurgery.models.sources import downloads
from graphsurgery.models.sources.downloads import require_reachable, unreachable, without_retries


@pytest.fixture
def no_network(monkeypatch):
    """Nobody answers, and nothing that was asked twice goes unseen."""
    asked = []

    def refused(address, **_):
        asked.append(address[0])
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refused)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_a_host_that_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/file") == ""


@pytest.mark.usefixtures("no_network")
def test_a_host_that_refuses():
    assert (
        unreachable("https://nowhere.example/file") == "nowhere.example cannot be reached (Name or service not known)"
    )
    with pytest.raises(SpecError, match=r"^CIFAR10 would be downloaded, and nowhere\.example cannot .*; unpack it$"):
        require_reachable("https://nowhere.example/f", "CIFAR10", "unpack it")


@pytest.mark.usefixtures("no_network")
def test_a_proxy_is_asked_in_its_place(monkeypatch):
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    assert unreachable("https://nowhere.example/file").startswith("proxy.example cannot be reached")
    monkeypatch.setenv("no_proxy", "nowhere.example")
    assert unreachable("https://nowhere.example/file").startswith("nowhere.example cannot be reached")


def test_a_question_without_an_answer_ends(monkeypatch):
    over = threading.Event()

    def waiting(*_, **__):
        over.wait(30)
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", waiting)
    monkeypatch.setattr(downloads, "PATIENCE", 0.05)
    assert unreachable("https://nowhere.example/file") == "nowhere.example does not answer"
    over.set()


def test_weights_of_torchvision(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = (
        r"squeezenet1_1\?weights=DEFAULT: its weights would be downloaded, and download\.pytorch\.org cannot .*put "
    )
    with pytest.raises(SpecError, match=message) as caught:
        build("torchvision/squeezenet1_1?weights=DEFAULT")
    place = str(caught.value).rpartition(" at ")[2]
    assert place.startswith(str(tmp_path))
    assert no_network == ["download.pytorch.org"]
    module = build("torchvision/squeezenet1_1")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: module.state_dict())
    torch.save(module.state_dict(), place)
    found = build("torchvision/squeezenet1_1?weights=IMAGENET1K_V1")
    torch.testing.assert_close(found.state_dict(), module.state_dict())
    assert len(no_network) == 1  # what is here needs no network


def test_weights_of_timm(no_network):
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match=r"its weights would be downloaded, and huggingface\.co cannot be reached"):
        build("timm/test_resnet?pretrained=true")
    assert no_network == ["huggingface.co"]


@pytest.mark.usefixtures("no_network")
def test_a_cache_is_asked_without_a_network():
    constants = pytest.importorskip("huggingface_hub.constants")
    assert not constants.HF_HUB_OFFLINE
    with without_retries() as why:
        assert constants.HF_HUB_OFFLINE
        assert why
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_data_that_would_be_downloaded(no_network, monkeypatch, tmp_path, name):
    from graphsurgery.training.data import load_data, sources

    monkeypatch.setenv("GRAPHSURGERY_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "_FASHION_FOLDERS", ())
    with pytest.raises(SpecError, match=r"would be downloaded, and .* cannot be reached"):
        load_data(name)
    assert len(no_network) == 1
