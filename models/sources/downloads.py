"""Weights and data that have to be downloaded: a network that is not there is noticed in seconds, not after retries."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from graphsurgery.errors import SpecError, one_line
from graphsurgery.progress import phase

PATIENCE = 5.0
"""Seconds that a host, and whoever knows its address, may take to answer."""
_PORTS = {"http": 80, "https": 443}


def unreachable(url: str) -> str:
    """Why nothing can be downloaded from an address; empty where its host, or the proxy before it, answers."""
    parts = urlsplit(url)
    host = str(parts.hostname)
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    asked = urlsplit(proxy if proxy is None or "://" in proxy else f"http://{proxy}") if proxy else parts
    found: list[OSError | None] = []

    def connect() -> None:
        try:
            port = asked.port or _PORTS.get(asked.scheme, 443)
            socket.create_connection((str(asked.hostname), port), timeout=PATIENCE).close()
        except OSError as error:
            found.append(error)
        else:
            found.append(None)

    # In a thread, as nothing else ends a question for an address that nobody answers.
    thread = threading.Thread(target=connect, daemon=True)
    with phase(f"connecting to {asked.hostname}"):
        thread.start()
        thread.join(PATIENCE)
    if not found:
        return f"{asked.hostname} does not answer"
    return "" if found[0] is None else f"{asked.hostname} cannot be reached ({one_line(found[0])})"


def require_reachable(url: str, what: str, instead: str) -> None:
    """Refuse a download from a host that does not answer.

    Args:
        url: of what is downloaded.
        what: is downloaded, for the message.
        instead: what to do.

    Raises:
        SpecError: it does not.
    """
    if why := unreachable(url):
        raise SpecError(f"{what} would be downloaded, and {why}; {instead}")


def require_torchvision_weights(spec: str, name: str, weights: Any) -> None:
    """Refuse a spec whose weights are neither here nor to be had.

    Raises:
        SpecError: they are not.
    """
    import torch
    from torchvision.models import get_model_weights

    members = get_model_weights(name).__members__
    found = members.get(str(weights).rpartition(".")[2])
    if found is None:  # building the network says what is wrong
        return
    url = found.url
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not place.is_file():
        require_reachable(url, f"{spec}: its weights", f"connect, or put {url} at {place}")


@contextlib.contextmanager
def timm_weights(spec: str, name: str) -> Iterator[None]:
    """Inside the block timm finds the weights of a model: downloaded, or without a network those that are here.

    Raises:
        SpecError: they are neither here nor to be had.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    hub = getattr(config, "hf_hub_id", None)
    if not hub or importlib.util.find_spec("huggingface_hub") is None:
        url = getattr(config, "url", None)
        if url:
            require_reachable(url, f"{spec}: its weights", "connect")
        yield
        return
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    with without_retries() as why:
        if why and not any(isinstance(try_to_load_from_cache(hub, file), str) for file in files):
            raise SpecError(
                f"{spec}: its weights would be downloaded, and {why}; connect, or put {hub} into the cache of "
                "huggingface_hub"
            )
        yield


@contextlib.contextmanager
def without_retries() -> Iterator[str]:
    """Inside the block huggingface_hub takes what is in its cache where its host does not answer.

    Gives why it does not; empty where it does, or where only the cache is asked anyway.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        yield ""
        return
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    why = "" if offline else unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline or bool(why)
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = offline
