"""The command line; one file per command, loaded when it is called."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Sequence

from cyclopts import App

from graphsurgery import __version__
from graphsurgery.cli.arguments.examples import epilogue
from graphsurgery.cli.options import IMAGES, PARTS, RANDOM, TOKENS, WEIGHTS, Shown
from graphsurgery.cli.process.collecting import leave, pause
from graphsurgery.cli.process.failures import (
    DOCUMENT,
    DONE,
    EXIT_CODES,
    Failure,
    Terminated,
    failure_of,
    print_document,
)
from graphsurgery.cli.process.streams import silence, take_every_character
from graphsurgery.cli.process.watching import is_first, watching
from graphsurgery.cli.running import MADE, advice, tidy, with_config

EPILOGUE = (
    "Options from a file: COMMAND --config runs/train-0001/config.json; options beside it prevail.\n\n"
    f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}."
)

app = App(
    name="graphsurgery",
    version=__version__,
    help="Surgery on trained neural networks: merge, compress, widen, deepen, export, and prove each step.",
    # Otherwise cyclopts exits by itself, without a word.
    suppress_keyboard_interrupt=False,
    help_epilogue=EPILOGUE,
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
    "data": "List the data that can be named, and their options.",
    "models": "List the models that can be named, by a word.",
    "demo": "Train two networks on digits, merge them, export, and report.",
}
for _name, _help in _COMMANDS.items():
    _below = epilogue(_name, EPILOGUE)
    app.command(f"graphsurgery.cli.commands.{_name}:{_name}", name=_name, help=_help, help_epilogue=_below)
app.command(
    "graphsurgery.cli.commands.completion:install_completion",
    name="--install-completion",
    help="Let the shell complete commands and options (bash, zsh, fish).",
)


def main(tokens: Sequence[str] | None = None) -> None:
    """The console entry: run a command and exit with its code; a request to end is an interrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    pause()
    leave(run(tokens))


def run(tokens: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code. Whatever goes wrong is one line on standard error, and in the JSON."""
    take_every_character()
    for noted in (IMAGES, PARTS, RANDOM, WEIGHTS):
        noted.set({})
    MADE.set(None)
    DOCUMENT.set(None)
    tokens = sys.argv[1:] if tokens is None else tokens
    asked = Shown.of(tokens)
    with watching(quiet=asked.quiet, verbose=asked.verbose):
        failure = _called(tokens, verbose=asked.verbose)
    if failure is not None:
        failure.show(whole=asked.traceback or failure.needs_traceback, causes=asked.verbose)
    if asked.json and is_first() and (failure is not None or DOCUMENT.get() is not None):
        try:
            print_document(failure)
        except OSError as cause:
            failure = failure_of(cause)
            assert failure is not None
            failure.show(whole=False, causes=False)
    return DONE if failure is None else failure.code


def _called(tokens: Sequence[str], *, verbose: bool) -> Failure | None:
    """Call the command; how it failed, or None."""
    try:
        tokens = with_config(tokens)
        TOKENS.set(tokens)
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("default" if verbose else "ignore")
            app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
    except (Exception, KeyboardInterrupt) as cause:
        failure = failure_of(cause, lambda: options_of(tokens), advice(tokens))
        if failure is None:
            # Whoever read the output has enough; the interpreter's last flush must not complain.
            silence(sys.stdout)
        return failure
    finally:
        tidy()
    return None


def options_of(tokens: Sequence[str]) -> list[str]:
    """The options of the command that a command line calls; none where it calls no command."""
    if not tokens or tokens[0] not in _COMMANDS:
        return []
    return [name for argument in app[tokens[0]].assemble_argument_collection() for name in argument.names]


def _terminate(number: int, frame: object) -> None:  # noqa: ARG001
    raise Terminated
