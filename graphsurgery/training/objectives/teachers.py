"""Teachers, and what they say about a set of examples, computed once and kept in a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import one_output
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.network.paths import named_tensors
from graphsurgery.progress import phase
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.devices import choose_device, placed

_BATCHES = 20
"""Batches between two notes of how far a file is."""
_PROBES = 64


class Teachers(nn.Module):
    """The mean of the logits of several networks, in evaluation mode and without gradients."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def train(self, mode: bool = True) -> Teachers:  # noqa: ARG002
        """A teacher stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]` to `[batch, classes]`."""
        return torch.stack([one_output(member(x), "a teacher") for member in self.members]).mean(0)

    def digest(self) -> str:
        """Equal for teachers with the same weights and graphs."""
        found = hashlib.sha256()
        for member in self.members:
            if isinstance(member, OnnxTeacher):
                found.update(member.path.read_bytes() + f"{member.output}".encode())
                continue
            # The graph says how layers are called, the module what their settings are.
            found.update(f"{getattr(member, 'graph', '')}\n{member}".encode())
            for name, tensor in named_tensors(member).items():  # those that are not stored, too
                found.update(name.encode() + _bytes(tensor))
        return found.hexdigest()


class OnnxTeacher(nn.Module):
    """A network in an `.onnx` file, run by ONNX Runtime on the CPU; it has no gradients.

    Args:
        path: the file.
        answer: the name of its output, needed where it has several.

    Raises:
        SurgeryError: the file cannot be opened, or has several inputs, or several outputs and not this one.
    """

    def __init__(self, path: Path | str, answer: str | None = None) -> None:
        super().__init__()
        from graphsurgery.onnx.runtime.sessions import open_session

        self.path = Path(path)
        self.session: Any = open_session(self.path, threads=torch.get_num_threads())
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise SurgeryError(f"{path}: has {len(inputs)} inputs, a teacher has one")
        self.input = inputs[0].name
        names = [value.name for value in self.session.get_outputs()]
        if len(names) > 1 and answer not in names:
            raise SurgeryError(f"{path}: gives several outputs ({', '.join(names)}); choose one with --answer NAME")
        self.output = names[0] if len(names) == 1 else answer

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]` to `[batch, classes]`, in float32."""
        found = self.session.run([self.output], {self.input: x.detach().float().cpu().numpy()})[0]
        return torch.from_numpy(found).to(x)


class OnnxOutputs(nn.Module):
    """All that an `.onnx` file gives for all its inputs, run by ONNX Runtime on the CPU; it has no gradients.

    Raises:
        SurgeryError: the file cannot be opened, or run.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        from graphsurgery.onnx.runtime.sessions import open_session

        self.path = Path(path)
        self.session: Any = open_session(self.path, threads=torch.get_num_threads())
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every output by its name."""
        from graphsurgery.onnx.runtime.sessions import run_session

        if len(inputs) != len(self.inputs):
            raise SurgeryError(f"{self.path}: takes {len(self.inputs)} inputs, the student {len(inputs)}")
        plain = [x.detach().cpu() for x in inputs]
        plain = [x.float() if x.is_floating_point() else x for x in plain]
        parts = [
            run_session(self.session, dict(zip(self.inputs, part, strict=True)), str(self.path))
            for part in self._runs(plain)
        ]
        whole = [found[0] if len(found) == 1 else torch.cat(found) for found in zip(*parts, strict=True)]
        counts = {
            name: x[: len(plain[0])] if len(parts) > 1 else x for name, x in zip(self.outputs, whole, strict=True)
        }
        return {name: x.to(inputs[0].device) for name, x in counts.items()}

    def _runs(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        """The inputs of each run; of a file that is fixed at a batch as many examples, the last ones repeated."""
        from graphsurgery.onnx.runtime.sessions import fixed_batch

        batch = fixed_batch(self.session)
        count = len(inputs[0]) if inputs[0].dim() else 1
        if batch in (None, count):
            return [list(inputs)]
        places = [torch.arange(start, start + batch).clamp(max=count - 1) for start in range(0, count, batch)]
        return [[x[place] for x in inputs] for place in places]


def logits_of(
    teachers: Teachers,
    dataset: Dataset[Any],
    folder: Path | None = None,
    *,
    batch_size: int = 256,
    device: str = "auto",
) -> Tensor:
    """What the teachers say about every example, `[examples, classes]`, float32.

    With a folder they are streamed to a memory-mapped file there, under a name that follows from the contents of
    teachers and examples. The same call finds them again, and goes on where an earlier one was interrupted.

    Args:
        teachers: run on every example once.
        dataset: examples `(x, ...)`; of data that are not in memory a few dozen stand for the contents.
        folder: where the files are kept; None keeps them in memory.
        batch_size: examples per forward pass.
        device: where to run.

    Raises:
        SurgeryError: the teachers do not give one tensor `[batch, classes]`.
    """
    chosen = choose_device(device)
    examples = Examples(dataset, chosen)
    path = None if folder is None else folder / f"logits-{_key(teachers, dataset)}.npy"
    done = 0 if path is None else _noted(path)
    if path is not None and done == len(examples):
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    table: Any = np.lib.format.open_memmap(path, mode="r+") if path is not None and done else None
    parts = in_order(len(examples) - done, batch_size)
    working = phase("asking the teachers, batches", len(parts))
    with working as at, placed(teachers, chosen), evaluating(teachers), torch.no_grad():
        batches = examples.batches([part + done for part in parts])
        for number, batch in enumerate(batches, 1):
            found = teachers(batch[0])
            if not isinstance(found, Tensor) or found.dim() != 2:
                raise SurgeryError(f"teachers: give {list(found.shape)}, expected [batch, classes]")
            if table is None:
                table = _new_table(path, (len(examples), found.shape[1]))
            table[done : done + len(found)] = found.float().cpu().numpy()
            done += len(found)
            at.step()
            if path is not None and (number % _BATCHES == 0 or done == len(examples)):
                table.flush()
                _note(path, done)
    return torch.from_numpy(np.asarray(table))


def _new_table(path: Path | None, shape: tuple[int, int]) -> Any:
    if path is None:
        return np.empty(shape, np.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        _reserve(path)
    except OSError as cause:
        path.unlink(missing_ok=True)
        raise SurgeryError(f"{path}: cannot be written ({cause.strerror}); free space or give another place") from cause
    return table


def _reserve(path: Path) -> None:
    """Take the whole space of a file that is mapped: on a full disk, writing into it later would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as cause:
            if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def _noted(path: Path) -> int:
    """How many examples a file has; 0 where there is none, or it is damaged."""
    try:
        done = int(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["done"])
        return done if len(np.load(path, mmap_mode="r")) >= done else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _note(path: Path, done: int) -> None:
    with atomic_write(path.with_suffix(".json")) as part:
        part.write_text(json.dumps({"done": done}), encoding="utf-8")


def _key(teachers: Teachers, dataset: Dataset[Any]) -> str:
    """A name for the contents of teachers and examples."""
    found = hashlib.sha256(teachers.digest().encode())
    if type(dataset) is TensorDataset:
        found.update(_bytes(dataset.tensors[0]))
        return found.hexdigest()[:16]
    size = len(dataset)  # type: ignore[arg-type]
    found.update(f"{type(dataset).__name__} {size}".encode())
    for index in torch.linspace(0, size - 1, min(size, _PROBES)).long().tolist():
        with seeded(index):
            found.update(_bytes(torch.as_tensor(dataset[index][0])))
    return found.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
