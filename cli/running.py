"""Run folders: where a training can go on, numbered under `runs/` where nobody names one; and options from a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.options import TOKENS, files_of
from graphsurgery.cli.process.watching import is_alone
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.training.loop.run import Run

RUNS = Path("runs")
MADE: ContextVar[Path | None] = ContextVar("MADE", default=None)
"""The run folder of this command."""

_READ = 2**30
"""Bytes of a folder that are read, to know it by its contents."""

_NOT_KEPT = (
    "--run",
    "--resume",
    "--no-run",
    "--dry-run",
    "--json",
    "--quiet",
    "--verbose",
    "--traceback",
    "--overwrite",
    "--config",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Running:
    """Where metrics and states go."""

    run: Path | None = None
    """Folder for metrics and states; the same command resumes from it. By default runs/COMMAND-0001 and so on."""
    resume: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Go on with the last run of the same command under runs/ (or with --run), which may have had fewer --epochs."""

    def open(
        self, screen: Screen, config: Mapping[str, Any], *, reads: Iterable[str | None] = (), trains: bool = True
    ) -> Run | None:
        """The folder of this run, made or found again; None where nothing is trained and no folder is named.

        Args:
            screen: where to say from which epoch it goes on.
            config: what fixes the result, with the name of the `command`.
            reads: what the command opens; files among it are known by their contents.
            trains: whether there is something to keep.

        Raises:
            SurgeryError: there is no such run to resume, or the folder holds another, or files of somebody else.
        """
        from graphsurgery.training.loop.run import Run

        named = self.run
        if named is None and not self.resume and not (trains and is_alone()):
            # Several processes would have to agree on a number before they can speak to each other.
            return None
        config = {**config, **contents_of(reads)}
        if named is not None:
            _refuse_foreign(named)
            if self.resume and not (named / "config.json").exists():
                raise SurgeryError(f"{named}: holds no run to resume; leave out --resume to begin one")
        elif self.resume:
            named = _last_like(config)
        else:
            named = _new_folder(str(config["command"]))
        run = Run(named, config=config, call=call_of(TOKENS.get()), extend=self.resume)
        MADE.set(named)
        screen.run = named
        reached: dict[str, int] = {}
        for record in run.metrics():
            reached[record["stage"]] = max(record["epoch"], reached.get(record["stage"], 0))
        if reached:
            words = ", ".join(f"{stage} from epoch {epoch + 1}" for stage, epoch in reached.items())
            screen.line("resumes", f"{named}: {words}")
        return run


RUNNING = Running()


def contents_of(reads: Iterable[str | None]) -> dict[str, dict[str, str]]:
    """What fixes a result beside the names of files: what is in them.

    Specs name files and folders too (`nets.py:small`, `arrays:DIR`). Of folders above a gigabyte it is the names, sizes
    and times of what lies in them.
    """
    found = {}
    for name in filter(None, reads):
        known = [path for path in files_of(name) if path.exists()]
        if known:
            found[name] = _digest(known[0])
    return {"contents": found} if found else {}


def _digest(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    states = {file: file.stat() for file in sorted(path.rglob("*")) if file.is_file()}
    read = sum(state.st_size for state in states.values()) <= _READ
    told = {
        file.relative_to(path).as_posix(): _digest(file) if read else [state.st_size, state.st_mtime_ns]
        for file, state in states.items()
    }
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def tidy() -> None:
    """Take away the numbered run folder of this command if nothing was kept in it."""
    made = MADE.get()
    if made is None or made.parent != RUNS or not made.is_dir():
        return
    if {file.name for file in made.iterdir()} <= {"config.json"}:
        (made / "config.json").unlink(missing_ok=True)
        made.rmdir()
        with contextlib.suppress(OSError):  # there are others
            RUNS.rmdir()


def advice(tokens: Sequence[str]) -> str:
    """How an interrupted command goes on; empty where it kept nothing."""
    made = MADE.get()
    if made is None or not any(made.glob("*.state.pt")):
        return ""
    named = [] if made.parent != RUNS or "--resume" in tokens else ["--resume"]
    return f"; go on with: {shlex.join(['graphsurgery', *tokens, *named])}"


def call_of(tokens: Sequence[str]) -> dict[str, Any]:
    """A command line as what a file can hold: `arguments`, and `options` by name.

    An option is true, its value, a list of its values, or, where it was given several times, a list of such lists.
    Files are named by their whole path.
    """
    groups: list[list[str]] = [[]]
    for token in tokens[1:]:
        if token.startswith("-") and not _is_number(token):
            name, equals, value = token.partition("=")
            groups.append([name, value] if equals else [name])
        else:
            groups[-1].append(token)
    options: dict[str, Any] = {}
    for name, *values in groups[1:]:
        if name in _NOT_KEPT:
            continue
        key = "output" if name == "-o" else name.lstrip("-")
        found = values if key == "output" else [_whole(value, folders=key in ("calib", "cache")) for value in values]
        if key in options:
            before = options[key] if isinstance(options[key], list) else [options[key]]
            options[key] = [*(before if before and isinstance(before[0], list) else [before]), found]
        else:
            options[key] = True if not found else found[0] if len(found) == 1 else found
    return {"arguments": [_whole(value) for value in groups[0]], "options": options}


def with_config(tokens: Sequence[str]) -> list[str]:
    """A command line in which `--config FILE` is what the file says; options beside it prevail.

    The file is the `config.json` of a run, or JSON or YAML with `command`, `arguments` and `options`; the options may
    stand at the top, too.

    Raises:
        SurgeryError: the file cannot be read, or belongs to another command.
    """
    tokens = list(tokens)
    place = next((n for n, token in enumerate(tokens) if token == "--config" or token.startswith("--config=")), None)
    if place is None:
        return tokens
    if tokens[place] == "--config" and place + 1 == len(tokens):
        raise SurgeryError("--config: wants a file, such as runs/train-0001/config.json")
    inline = tokens[place].partition("=")[2]
    path, rest = (
        Path(inline or tokens[place + 1]),
        [
            *tokens[:place],
            *tokens[place + (1 if inline else 2) :],
        ],
    )
    found = _read(path)
    command = found.get("command")
    own = rest[0] if rest and not rest[0].startswith("-") else None
    if not isinstance(command or own, str):
        raise SurgeryError(f"{path}: names no command; give it before --config")
    if own is not None and command is not None and own != command:
        raise SurgeryError(f"{path}: is of the command {command}, not of {own}")
    rest = rest[1:] if own is not None else rest
    call = found.get("call", found)
    options = call.get("options")
    if options is None:
        options = {key: value for key, value in call.items() if key not in ("command", "arguments")}
    arguments = call.get("arguments", [])
    if not isinstance(options, Mapping) or not isinstance(arguments, list):
        raise SurgeryError(f"{path}: expected arguments, a list, and options by name")
    if rest and not rest[0].startswith("-"):
        arguments = []
    given = {"output" if token.startswith("-o") else _bare(token) for token in rest if token.startswith("-")}
    words = [str(argument) for argument in arguments]
    for key, value in options.items():
        if _bare(f"--{key}") not in given:
            words += _option(f"--{str(key).replace('_', '-')}", value)
    return [str(command or own), *words, *rest]


def _bare(token: str) -> str:
    """The name of an option, whether it is denied or has a value behind `=`."""
    return token.partition("=")[0].lstrip("-").removeprefix("no-").replace("_", "-")


def _option(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [name if value else f"--no-{name.removeprefix('--')}"]
    if not isinstance(value, list):
        return [name, str(value)]
    if value and isinstance(value[0], list):
        return [word for part in value for word in _option(name, part)]
    return [name, *map(str, value)]


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SurgeryError(f"{path}: cannot be read as JSON or YAML ({type(error).__name__}); give a config") from error
    if not isinstance(found, Mapping):
        raise SurgeryError(f"{path}: holds no options by name; give the config.json of a run")
    return found


def _whole(value: str, *, folders: bool = False) -> str:
    """A value that names a file, by its whole path."""
    from graphsurgery.models.spec_text import anchored

    path = Path(value)
    if path.is_file() or (folders and path.is_dir()):
        return os.path.abspath(path)
    return anchored(value)


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-\d*\.?\d+(e[+-]?\d+)?", token) is not None


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose `config.json` somebody else has written."""
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "command" not in found:
        raise SurgeryError(f"{path}: is not of a run, and would be written over; give another folder with --run")


def _new_folder(command: str) -> Path:
    """The next number under `runs/`, made."""
    taken = [int(file.name.rpartition("-")[2]) for file in _numbered(command)]
    number = max(taken, default=0) + 1
    while True:
        folder = RUNS / f"{command}-{number:04d}"
        try:
            RUNS.mkdir(exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if not RUNS.is_dir():
                raise SurgeryError(f"{RUNS}: is a file, and runs are kept there; give --run FOLDER") from None
            number += 1
        except OSError as error:
            raise SurgeryError(f"{folder}: cannot be made ({error.strerror}); give --run FOLDER") from error
        else:
            return folder


def _numbered(command: str) -> list[Path]:
    """The run folders of a command, the last one last."""
    found = [file for file in RUNS.glob(f"{command}-*") if re.fullmatch(r"\d+", file.name[len(command) + 1 :])]
    return sorted(found, key=lambda file: int(file.name.rpartition("-")[2]))


def _last_like(config: Mapping[str, Any]) -> Path:
    """The last run folder that this configuration can go on in."""
    from graphsurgery.training.loop.run import difference

    command, first = str(config["command"]), None
    for folder in reversed(_numbered(command)):
        try:
            found = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if (differs := difference(found, config, extend=True)) is None:
            return folder
        first = first or (folder, *differs)
    if first is None:
        raise SurgeryError(f"{RUNS}: holds no run of {command} to resume; leave out --resume to begin one")
    folder, name, old, new = first
    raise SurgeryError(
        f"{RUNS}: holds no run of {command} with these options; the last, {folder}, has {name} = {old!r}, now {new!r}"
    )
