"""Cut a network that does not fit into memory: its weights are read twice, some rows at a time, and written in shards.

Once for the importance of the channels, once for what is left of them. What is done lies in a folder beside the result,
and an interrupted run goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import graphsurgery
from graphsurgery.checkpoint.atomic import atomic_write, clean_parts
from graphsurgery.errors import CheckpointError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.models.libraries.installing import put_in_place
from graphsurgery.models.libraries.streaming import (
    SHARD,
    Shard,
    StoredNetwork,
    configuration_of,
    in_batches,
    shards_of,
    write_around,
    write_shards,
)
from graphsurgery.models.libraries.tensor_files import tensors_in, write_file
from graphsurgery.progress import phase
from graphsurgery.recipes.compression.shrink import Cut, cut
from graphsurgery.surgery.channels.streamed import StreamedScores
from graphsurgery.training.loop.holding import Held, held

_NEEDS_RUNS = {"taylor": "gradients of the whole network", "gate": "gates, which a folder has not"}
_TASK = "task.json"


@dataclass(frozen=True)
class StreamedCut:
    """What was written.

    Attributes:
        graph: the network before, without values.
        small: the network after, without values.
        config: the fields of its configuration that have changed.
        shards: its files.
        resumed: how many of them were there from a run before.
        kind: the class that holds it.
    """

    graph: ModelGraph
    small: ModelGraph
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    resumed: int
    kind: str


class Journal:
    """The folder in which a result grows, `OUT.part` beside OUT.

    What lies in it is whole: files are written beside their place and moved into it. One process works in it at a time.

    Args:
        output: where the result will be.
        task: what is done to what, JSON-like.
        anew: whether to begin again where another task is in the folder.

    Raises:
        SurgeryError: the folder is of another task, or something else; or another process works in it.
    """

    def __init__(self, output: Path, task: Mapping[str, Any], *, anew: bool = False) -> None:
        self.output, self.folder = output, output.with_name(f"{output.name}.part")
        self.made, self.sums = self.folder / "result", self.folder / "importance"
        told = json.dumps(task, sort_keys=True, default=str)
        new = not self.folder.exists()
        if self.folder.exists() and not self.folder.is_dir():
            raise self._in_the_way()
        self.folder.mkdir(exist_ok=True)
        self._hold: Held | None = held(self.folder)
        if not new:
            self._check(json.loads(told), anew=anew)
            clean_parts(self.folder)
        with atomic_write(self.folder / _TASK) as temporary:
            temporary.write_text(told, encoding="utf-8")
        for folder in (self.made, self.sums):
            folder.mkdir(exist_ok=True)

    def _check(self, task: Mapping[str, Any], *, anew: bool) -> None:
        """Refuse a folder with something else in it, or empty it."""
        if not any(self.folder.iterdir()):
            return
        try:
            found = json.loads((self.folder / _TASK).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise self._in_the_way() from cause
        other = [name for name in {**task, **found} if task.get(name) != found.get(name)]
        if other and not anew:
            raise SurgeryError(
                f"{self.folder}: is the unfinished result of another task (not the same: {', '.join(other)}); repeat"
                " that command to go on with it, remove the folder, or give --overwrite to begin anew"
            )
        for folder in (self.made, self.sums) if other else ():
            shutil.rmtree(folder, ignore_errors=True)

    def _in_the_way(self) -> SurgeryError:
        return SurgeryError(
            f"{self.folder}: is in the way, as an unfinished result is kept there; move it, or give another name"
        )

    def scores(self, network: StoredNetwork, plan: Cut) -> StreamedScores:
        """The importance of the channels, from the sums that are there, and from the weights for the others."""
        scores = StreamedScores(network.graph, plan.importance, plan.seed, network.stored)
        for number, names in enumerate(_read_together(network), 1):
            file = self.sums / f"{number:05d}.safetensors"
            try:
                scores.know({name: tensor.read() for name, tensor in tensors_in(file).items()})
            except CheckpointError:
                write_file(scores.read(names), file)
        return scores

    def finish(self) -> None:
        """Put the result in its place; nothing else is left."""
        put_in_place(self.made, self.output)
        shutil.rmtree(self.folder)
        self._hold = None


def task_of(network: StoredNetwork, plan: Cut) -> dict[str, Any]:
    """What is done to what: files are known by their sizes and times, and a configuration by its content."""
    files = sorted({tensor.file for tensor in network.tensors.values()})
    states = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    config = hashlib.sha256((network.folder / "config.json").read_bytes()).hexdigest()
    return {"version": graphsurgery.__version__, "weights": states, "configuration": config, "cut": asdict(plan)}


def _read_together(network: StoredNetwork) -> list[list[str]]:
    """The parameters of a network in the order of its files, so many together as a shard has."""
    return in_batches(list(network.stored), [tensor.bytes for tensor in network.stored.values()])


def check_streamed(network: StoredNetwork, plan: Cut) -> None:
    """Refuse a plan that needs more than weights.

    Raises:
        SurgeryError: it does.
    """
    if plan.importance in _NEEDS_RUNS:
        raise SurgeryError(
            f"compress: importance {plan.importance} needs {_NEEDS_RUNS[plan.importance]}, and weights are read one by"
            " one here; take l2, l1, bn or random"
        )
    StreamedScores(network.graph, plan.importance, plan.seed, {})  # it knows the criterion
    precisions = {tensor.dtype for tensor in network.tensors.values()}
    if plan.target is not None and plan.target.quantity == "size" and len(precisions) > 1:
        raise SurgeryError(
            "compress: the weights are stored in several precisions, so a size cannot be aimed at; give params=0.5x"
        )


def cut_stored(network: StoredNetwork, plan: Cut, journal: Journal | None = None) -> ModelGraph:
    """The network without the channels that matter least, without values; see `cut`.

    Raises:
        SurgeryError: as for `cut`, and the plan needs more than weights.
    """
    check_streamed(network, plan)
    with phase("reading weights for their importance"):
        if journal is not None:
            scores = journal.scores(network, plan)
        else:
            scores = StreamedScores(network.graph, plan.importance, plan.seed, network.stored)
            for names in _read_together(network):
                scores.read(names)
    return cut(network.graph, plan, scores=scores)


def compress_folder(
    network: StoredNetwork, plan: Cut, output: Path, *, overwrite: bool = False, shard_bytes: int = SHARD
) -> StreamedCut:
    """Write a cut network as a folder for `from_pretrained`; nothing but some rows and one shard is ever in memory.

    The configuration of its class has the new sizes, and the graph of that class is compared with the cut one. What is
    written grows in `OUT.part`; a run that was interrupted, however, goes on when the same is asked for again. Before
    anything is read, the same sizes are tried with channels that are drawn.

    Args:
        network: see `open_stored`.
        plan: what to cut; by weights alone.
        output: the folder.
        overwrite: whether weights that are there give way, and another unfinished result.
        shard_bytes: how many bytes a file has at most, where it holds more than one tensor.

    Raises:
        SurgeryError: as for `cut_stored`; the class has no configuration for the edit; files cannot be read or written.
        CheckpointError: a file is damaged.
    """
    check_streamed(network, plan)
    trial = cut(network.graph, replace(plan, importance="random"))
    built, fields = configuration_of(network, trial)
    journal = Journal(output, task_of(network, plan) | {"shards": shard_bytes}, anew=overwrite)
    small = cut_stored(network, plan, journal)
    shards = shards_of(network, small, shard_bytes)
    if shards != shards_of(network, trial, shard_bytes):  # which channels matter decides about sizes too
        built, fields = configuration_of(network, small)
    resumed = [shard for shard in shards if shard.lies_in(journal.made)]
    _check_room(journal.folder, sum(shard.bytes for shard in shards) - sum(shard.bytes for shard in resumed))
    with phase("writing shards", len(shards)) as at:
        for shard in write_shards(network, small, shards, journal.made):
            at.step(shard.file)
    try:
        write_around(network, built, shards, journal.made)
    except OSError as cause:
        raise SurgeryError(f"{journal.made}: cannot be written ({one_line(cause)}); free space") from cause
    journal.finish()
    return StreamedCut(network.graph, small, fields, tuple(shards), len(resumed), type(built).__name__)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SurgeryError(
            f"{folder}: {needed / 1e9:.1f} GB are still to be written, and the disk has {free / 1e9:.1f} GB; free"
            " space, and repeat the command: it goes on"
        )
