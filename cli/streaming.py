"""What the command that removes channels does with a folder of Hugging Face whose weights it reads one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphsurgery.cli.arguments.cutting import MEASURING, TUNING, Cutting, Measuring, Tuning
from graphsurgery.cli.compressing import CutSession, outcome_of_cut, show_costs, show_plan
from graphsurgery.cli.editing import Editing
from graphsurgery.cli.options import ENDINGS, Opening
from graphsurgery.cli.process.watching import is_alone
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.models.libraries.streaming import StoredNetwork
    from graphsurgery.recipes.compression.shrink import Cut

_SHARE = 0.5
"""Of the free memory; weights that take more are read one by one."""


def streams(model: str, output: Path) -> bool:
    """Whether weights are read one by one: into a folder always, into a file where memory would be short."""
    scheme, _, name = model.partition("?")[0].partition(":")
    if scheme != "hf":
        return False
    if is_folder_name(output):
        return True
    folder, free = Path(name), free_memory()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    return free is not None and size > _SHARE * free


def is_folder_name(output: Path) -> bool:
    """Whether a name is not that of a file that commands write; a version may stand in it, as in `llama-3.2-half`."""
    return output.suffix.lower() not in {ending for _, endings in ENDINGS.values() for ending in endings}


def free_memory() -> int | None:
    """Bytes that a process may still take; None where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


@dataclass(frozen=True)
class Unwanted:
    """What the command takes and needs the whole network in memory for.

    Attributes:
        tuning: how accuracy is brought back.
        measuring: how a latency is measured.
        others: by their options.
    """

    tuning: Tuning
    measuring: Measuring
    others: Mapping[str, object]

    def check(self, cutting: Cutting, opening: Opening) -> None:
        """Refuse what is given of it.

        Raises:
            SurgeryError: something is.
        """
        plain = Opening(trust_pickle=opening.trust_pickle, trust_remote_code=opening.trust_remote_code)
        found = {
            **{name: given is not None for name, given in self.others.items()},
            "--dead": cutting.dead,
            "--target latency": cutting.to_latency,
            "--round-to auto": cutting.round_to == "auto",
            "fine-tuning": self.tuning != TUNING,
            "measuring a latency": self.measuring != MEASURING,
            "--arch, --key, --answer or --input": opening != plain,
        }
        asked = [name for name, given in found.items() if given]
        if asked:
            raise SurgeryError(
                f"compress: the weights are read one by one, and nothing is run, so {asked[0]} has no place here; leave"
                " it out and fine-tune the result, or where the memory is large enough give -o FILE.pt"
            )
        if not is_alone():
            raise SurgeryError("compress: weights that are read one by one are cut by one process; start one")


def compress_stored(
    model: str, output: Path, report: Path | None, cutting: Cutting, editing: Editing, unwanted: Unwanted
) -> None:
    """Cut a folder of Hugging Face tensor by tensor."""
    unwanted.check(cutting, editing.opening)
    from graphsurgery.models.libraries.streaming import open_stored

    whole = not is_folder_name(output)
    files = {"network": output, **({} if report is None else {"report": report})}
    if whole:
        editing.writing.allow(reads=[model], network=output, report=report)
    else:
        _check_folder(output, model, report, editing)
    session = CutSession(editing.shown, {"model": model}, files, model=model)
    plan = cutting.plan(editing.seed)
    network = open_stored(model)
    count = len({tensor.file for tensor in network.tensors.values()})
    words = f"{network.bytes / 1e9:.2f} GB in {count} file{'s' * (count > 1)}, which are read one by one"
    session.screen.line("weights", words)
    session.document |= {"cut": asdict(plan), "streamed": {"bytes": network.bytes, "files": count}}
    if editing.dry_run:
        _try(session, network, plan, whole=whole)
    elif whole:
        _into_memory(session, network, plan)
    else:
        _into_folder(session, network, plan, overwrite=editing.writing.overwrite)


def _check_folder(output: Path, model: str, report: Path | None, editing: Editing) -> None:
    """Refuse a folder that could not be written, before anything is read."""
    editing.writing.allow(reads=[model], report=report)
    editing.writing.check_apart(output, [model])
    editing.writing.check_new(output)
    if output.exists() and not output.is_dir():
        raise SurgeryError(f"{output}: is a file, expected the name of a folder; end the name in .pt for a checkpoint")
    if not output.parent.is_dir():
        raise SurgeryError(f"{output}: its folder does not exist; make {output.parent} first")


def _try(session: CutSession, network: StoredNetwork, plan: Cut, *, whole: bool) -> None:
    """Show what would be cut, and whether the class can hold it."""
    from graphsurgery.models.libraries.streaming import configuration_of
    from graphsurgery.recipes.compression.streamed import cut_stored

    small = cut_stored(network, plan)
    if not whole:
        built, session.document["config"] = configuration_of(network, small)
        _show_class(session, small, type(built).__name__)
    show_plan(session.screen, small)
    session.document |= show_costs(session.screen, network.graph, small)
    session.would(f"write {', '.join(map(str, session.files.values()))}")


def _into_folder(session: CutSession, network: StoredNetwork, plan: Cut, *, overwrite: bool) -> None:
    from graphsurgery.recipes.compression.streamed import compress_folder

    done = compress_folder(network, plan, session.output, overwrite=overwrite)
    session.document |= show_costs(session.screen, done.graph, done.small)
    session.document |= {
        "config": dict(done.config),
        "class": done.kind,
        "shards": {shard.file: shard.bytes for shard in done.shards},
        "resumed": done.resumed,
    }
    _show_class(session, done.small, done.kind)
    if done.resumed:
        session.screen.line("resumed", f"{done.resumed} of {len(done.shards)} shards were there from a run before")
    verdict = _not_run(session)
    _report(session, done.graph, done.small, verdict)
    written = sum(shard.bytes for shard in done.shards)
    session.screen.line("wrote", f"{session.output} ({len(done.shards)} shards, {written / 1e9:.2f} GB)")
    session.screen.finish({**session.document, "files": session.files}, "inspect", f"hf:{session.output}")


def _into_memory(session: CutSession, network: StoredNetwork, plan: Cut) -> None:
    from graphsurgery.models.libraries.streaming import filled
    from graphsurgery.recipes.compression.streamed import cut_stored
    from graphsurgery.surgery.channels.cost import cost

    small = cut_stored(network, plan)
    needed, free = cost(small).bytes, free_memory()
    if free is not None and needed > free:
        raise SurgeryError(
            f"{session.output}: a checkpoint is written from memory, and {needed / 1e9:.1f} GB are more than the "
            f"{free / 1e9:.1f} GB that are free; a folder (-o {session.output.stem}) is written in shards"
        )
    session.document |= show_costs(session.screen, network.graph, small)
    verdict = _not_run(session)
    session.put(filled(network, small))
    _report(session, network.graph, small, verdict)
    session.finish()


def _show_class(session: CutSession, small: ModelGraph, kind: str) -> None:
    for name, value in session.document["config"].items():
        session.screen.line("config", f"{name} = {value}")
    count = len(small.module.graph.nodes)
    session.screen.line("check", f"{kind} with this configuration is the cut network: {count} nodes compared", "green")


def _not_run(session: CutSession) -> str:
    words = "nothing was run: how far the outputs move is not known, and they are not recovered"
    session.screen.line("note", words, "yellow")
    return words


def _report(session: CutSession, graph: ModelGraph, small: ModelGraph, verdict: str) -> None:
    config = {"model": session.model, "cut": session.document["cut"]}
    session.report(outcome_of_cut("compressed", graph, small, verdict, config))
