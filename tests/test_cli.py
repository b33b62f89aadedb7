"""tornado_memcache.cli: a word runs its module; an error is one line and a status."""

import argparse
import importlib
import subprocess
import sys

import pytest

from tornado_memcache import cli
from tornado_memcache.errors import InvalidRequest, ServerError


class Behind:
    """Stands for the module of a word."""

    def __init__(self, outcome):
        self.outcome = outcome

    def add_arguments(self, parser):
        parser.add_argument("--number", type=int, default=1)

    def run(self, arguments):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome + arguments.number


@pytest.fixture
def behind(monkeypatch):
    """Puts modules behind the words "one" and "other", which note when they are imported."""
    imported = []
    monkeypatch.setattr(
        cli, "WORDS", {"one": cli.Word("one", "do one"), "other": cli.Word("other", "do others")}
    )

    def put(outcome):
        def import_module(name, package):
            imported.append(name)
            return Behind(outcome)

        monkeypatch.setattr(importlib, "import_module", import_module)
        return imported

    return put


def test_the_status_is_what_the_word_returns_and_nothing_else_is_imported(behind):
    imported = behind(4)
    assert cli.main(["one", "--number", "3"]) == 7
    assert imported == [".one"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "required: WORD"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["one", "--number", "x"], "--number: invalid int value: 'x'"),
        (["one", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(behind, capsys, arguments, said):
    behind(0)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and said in told.err
    assert told.err.startswith("python -m tornado_memcache")


@pytest.mark.parametrize(
    "error, status",
    [
        (InvalidRequest("--port is\nwrong"), 2),
        (ServerError("no memory"), 1),
        (OSError("the address is taken"), 1),
    ],
)
def test_an_error_is_one_line_and_its_status(behind, capsys, error, status):
    behind(error)
    assert cli.main(["one"]) == status
    told = capsys.readouterr()
    said = str(error).replace("\n", " ")
    assert told.out == "" and told.err == f"python -m tornado_memcache one: {said}\n"


def test_ctrl_c_is_no_traceback(behind, capsys):
    behind(KeyboardInterrupt())
    assert cli.main(["one"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_ours_is_not_hidden(behind):
    behind(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["one"])


def test_help_lists_the_words(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for word, (_, does) in cli.WORDS.items():
        assert word in told and does[:20] in told


@pytest.mark.parametrize("word", cli.WORDS)
def test_each_word_has_a_module_with_both_functions(word):
    module = importlib.import_module(f"tornado_memcache.{cli.WORDS[word].module}")
    module.add_arguments(argparse.ArgumentParser())
    assert callable(module.run)


def test_it_is_run_as_a_module():
    line = [sys.executable, "-m", "tornado_memcache", "nonsense"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.count("\n") == 1 and "nonsense" in ran.stderr
