"""Under what circumstances something was measured: the command, the data, when, by which versions, on what machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("graphsurgery", "torch", "torchvision", "onnxruntime")


def circumstances(command: Sequence[str] = (), data: str = "") -> dict[str, str]:
    """What a reader needs to measure it again, by what it is.

    Args:
        command: the words of the command line without the program; empty where there was none.
        data: the data spec.
    """
    found = {
        "command": shlex.join(["graphsurgery", *command]) if command else "",
        "data": data,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "versions": ", ".join(filter(None, (_version(name) for name in _PACKAGES)))
        + f", Python {platform.python_version()}",
        "hardware": _hardware(),
    }
    return {what: text for what, text in found.items() if text}


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _hardware() -> str:
    """Processor, cores and memory, and the GPUs that torch sees."""
    import torch

    parts = [_processor(), f"{os.cpu_count()} cores, {torch.get_num_threads()} of them used by PyTorch", _memory()]
    parts += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return "; ".join(filter(None, parts))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


def _memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return ""
    return f"{pages / 2**30:.0f} GiB of memory"
