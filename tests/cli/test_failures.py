"""How commands fail: exit codes, the JSON document, and how much is said."""

import json

import pytest

from graphsurgery.cli import run
from graphsurgery.cli.process.failures import EXIT_CODES, Terminated, failure_of
from graphsurgery.errors import CheckFailedError, SpecError, SurgeryError, UnsupportedError

SPEC = "paper/cnn?width=3"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (CheckFailedError("no"), 1),
        (SpecError("no"), 2),
        (FileNotFoundError("no"), 2),
        (MemoryError(), 2),
        (UnsupportedError("no"), 3),
        (ValueError("no"), 70),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_exit_codes(cause, code, monkeypatch, capsys):
    def failing(*_, **__):
        raise cause

    monkeypatch.setattr("graphsurgery.cli.app", failing)
    assert run(["inspect", SPEC, "--json"]) == code
    streams = capsys.readouterr()
    error = json.loads(streams.out)["error"]
    assert (error["code"], error["kind"]) == (code, type(cause).__name__)
    assert streams.err.splitlines()[-1] == f"error  {error['message']}"
    assert code in EXIT_CODES
    assert ("Traceback" in streams.err) == (code == 70)
    assert ("please report it" in streams.err) == (code == 70)


def test_a_reader_that_goes_away_is_no_failure():
    assert failure_of(BrokenPipeError()) is None


@pytest.mark.parametrize(
    "tokens", [["inspect", "nowhere.pt"], ["trian"], ["inspect", SPEC, "--keep"], ["train", SPEC, "-o", "x.pt"]]
)
def test_whatever_is_wrong_is_one_json_document(tokens, capsys):
    assert run([*tokens, "--json"]) == 2
    streams = capsys.readouterr()
    assert f"error  {json.loads(streams.out)['error']['message']}\n" == streams.err


@pytest.mark.usefixtures("here")
def test_a_failed_check_stands_in_the_document_with_what_was_measured(monkeypatch, capsys):
    from graphsurgery.recipes.contracts import contract

    monkeypatch.setitem(contract.TOLERANCES, "gates folded = gated", -1.0)
    assert run(["doctor", "a.pt", "--no-onnx", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["kind"] == "CheckFailedError"
    assert {"holds", "fails"} == {each["status"] for each in found["contracts"]}


def test_a_traceback_where_it_is_asked_for(here, capsys):
    (here / "wrong.py").write_text("def f():\n    return {}['x']\n")
    assert run(["inspect", "wrong.py:f"]) == 2
    plain = capsys.readouterr().err
    assert plain == "error  wrong.py:f: fails: wrong.py:2 in f: KeyError: 'x'; repair the file, or the options\n"
    assert run(["inspect", "wrong.py:f", "--verbose"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [plain.strip(), "cause  KeyError: 'x'"]
    assert run(["inspect", "wrong.py:f", "--traceback"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):")
    assert told.endswith(plain)


@pytest.mark.usefixtures("here")
def test_verbose_says_every_epoch_and_phase(capsys):
    command = ["train", SPEC, "--data", "digits?train=32", "--epochs", "20", "--device", "cpu"]
    assert run([*command, "-o", "x.pt"]) == 0
    assert capsys.readouterr().err.count("train epoch") == 11
    assert run([*command, "-o", "y.pt", "--verbose"]) == 0
    told = capsys.readouterr().err
    assert told.count("train epoch") == 20
    assert "tracing the network, done in " in told


def test_an_error_in_the_middle_of_a_training_names_the_line_of_the_user(here, capsys):
    (here / "d.py").write_text(
        "import torch\n\nclass Odd(torch.utils.data.Dataset):\n    targets = [0, 1] * 20\n"
        "    def __len__(self): return 40\n    def __getitem__(self, i):\n"
        "        assert i != 11, 'a damaged image'\n        return torch.ones(1, 8, 8), i % 2\n\n"
        "def f():\n    return {'train': Odd(), 'test': Odd(), 'val': Odd()}\n"
    )
    common = [f"{SPEC}&classes=2", "--data", "d.py:f", "-o", "x.pt", "--device", "cpu", "--epochs", "1"]
    for workers in ("0", "1"):
        assert run(["train", *common, "--workers", workers]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error  d.py:7 in __getitem__: AssertionError: ")
        assert line.endswith("; repair the file")


def test_a_mistake_of_ours_below_the_users_code_is_ours(here, capsys, monkeypatch):
    (here / "d.py").write_text("import graphsurgery as gs\n\ndef f():\n    return gs.load_data('sine')\n")

    def wrong(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("graphsurgery.training.data.loading._from_source", wrong)
    assert run(["train", SPEC, "--data", "d.py:f", "-o", "x.pt"]) == 2
    assert capsys.readouterr().err == "error  d.py:f: cannot be built (KeyError: 'ours'); check its options\n"


def test_an_error_is_what_was_raised():
    failure = failure_of(SurgeryError("a line"))
    assert failure.as_dict() == {"code": 2, "kind": "SurgeryError", "message": "a line"}
