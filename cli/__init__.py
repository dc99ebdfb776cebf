"""The command line; one file per command, loaded when it is called."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError

from graphsurgery import __version__
from graphsurgery.cli.collecting import leave, pause
from graphsurgery.cli.options import IMAGES, RANDOM, TOKENS, WEIGHTS
from graphsurgery.cli.running import MADE, advice, tidy, with_config
from graphsurgery.cli.streams import folded, silence, take_every_character
from graphsurgery.errors import (
    CheckFailedError,
    SurgeryError,
    UnsupportedError,
    one_line,
    out_of_memory,
    require_file,
    visible,
)

DONE, CHECK_FAILED, USAGE, UNSUPPORTED, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 70, 130, 143

app = App(
    name="graphsurgery",
    version=__version__,
    help="Surgery on trained neural networks: merge, compress, widen, deepen, export, and prove each step.",
    # Otherwise cyclopts exits by itself, without a word.
    suppress_keyboard_interrupt=False,
    help_epilogue="Options from a file: COMMAND --config runs/train-0001/config.json; options beside it prevail.\n\n"
    "Exit codes: 0 done, 1 a check failed, 2 usage, 3 unsupported.",
)
_COMMANDS = {
    "train": "Train a network from a model spec.",
    "inspect": "Show which channels can change, what froze the others, and the cost.",
    "merge": "Merge trained networks of one topology into one of the size of the first.",
    "compress": "Remove channels, and fine-tune where data are given.",
    "widen": "Add channels; the outputs stay the same.",
    "deepen": "Insert layers; the outputs stay the same.",
    "grow": "Widen and deepen a network, train it on, and compare it with controls.",
    "factorize": "Replace layers by two with few channels between them.",
    "mimic": "Train a student on what teachers say.",
    "slim": "Train one set of weights that works at every width.",
    "widths": "What a slimmable network does at several widths.",
    "lottery": "Draw lottery tickets: train, prune, start again, next to controls.",
    "supermask": "Find a mask for weights that are never trained.",
    "masks": "Show, compare, join and apply masks of single weights.",
    "install": "Put an edited network back into the class of its library.",
    "export": "Write one ONNX file, compared with PyTorch and timed.",
    "diff": "Show what changed between two ONNX files, node by node.",
    "view": "Show a network, or an ONNX file, as a picture, with sliders to plan a cut.",
    "doctor": "Apply every pass to a network and measure every contract.",
    "demo": "Train two networks on digits, merge them, export, and report.",
}
_FILES = {".onnx": "an ONNX file", ".pt": "a checkpoint", ".safetensors": "tensors"}
"""What is in the files that commands read, by their endings."""
for _name, _help in _COMMANDS.items():
    app.command(f"graphsurgery.cli.commands.{_name}:{_name}", name=_name, help=_help)


def main(tokens: Sequence[str] | None = None) -> None:
    """The console entry: run a command and exit with its code; a request to end is an interrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    pause()
    code = run(tokens)
    leave()
    sys.exit(code)


def run(tokens: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code. Whatever goes wrong is one line on standard error."""
    take_every_character()
    IMAGES.set({})
    RANDOM.set({})
    WEIGHTS.set({})
    MADE.set(None)
    tokens = sys.argv[1:] if tokens is None else tokens
    try:
        tokens = with_config(tokens)
        TOKENS.set(tokens)
        _check_files(tokens)
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
    except CheckFailedError as cause:
        return _failed(cause, CHECK_FAILED)
    except UnsupportedError as cause:
        return _failed(cause, UNSUPPORTED)
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter's last flush must not complain.
        silence(sys.stdout)
        return DONE
    except (SurgeryError, CycloptsError, OSError) as cause:
        return _failed(cause, USAGE)
    except KeyboardInterrupt as cause:
        print(f"error  interrupted; nothing was left half written{advice(tokens)}", file=sys.stderr)  # noqa: T201
        return TERMINATED if isinstance(cause, Terminated) else INTERRUPTED
    except Exception as cause:
        if out_of_memory(cause):
            return _failed(SurgeryError(f"there is not enough memory for this ({one_line(cause)})"), USAGE)
        for line in traceback.format_exc().splitlines():
            print(visible(line), file=sys.stderr)  # noqa: T201
        return _failed(cause, BUG)
    finally:
        tidy()
    return DONE


def _check_files(tokens: Sequence[str]) -> None:
    """Refuse files that are not there before torch is imported, which takes seconds."""
    for before, token in itertools.pairwise(tokens):
        expected = _FILES.get(Path(token).suffix)
        if expected is not None and not before.startswith("-"):
            require_file(Path(token), expected)


class Terminated(KeyboardInterrupt):
    """The system, or whoever started the command, asks it to end (SIGTERM)."""


def _terminate(number: int, frame: object) -> None:  # noqa: ARG001
    raise Terminated


def _failed(cause: BaseException, code: int) -> int:
    bug = "this is a mistake in graphsurgery, please report it: " if code == BUG else ""
    with contextlib.suppress(OSError):  # nobody reads it
        print(folded(f"error  {bug}{one_line(cause, 1000)}", 7, sys.stderr), file=sys.stderr)  # noqa: T201
    return code
