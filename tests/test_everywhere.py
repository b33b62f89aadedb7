"""tests.everywhere: which settings there are, and what is told of a run. Nothing is run here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import everywhere
from .everywhere import Setting, interpreter, main, settings


@pytest.fixture
def pythons(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def there_are(*versions: str) -> None:
        programs = {version: f"/bin/python{version}" for version in versions}
        monkeypatch.setattr(everywhere, "interpreter", programs.get)

    return there_are


class Runs:
    """Stands in for `everywhere.run`: the runs that were asked for, of which some fail."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.asked: list[tuple[str, int, list[str]]] = []

    def __call__(self, setting: Setting, seed: int, more: list[str]) -> tuple[bool, str]:
        self.asked.append((setting.name, seed, more))
        green = len(self.asked) not in self.failing
        return green, "7 passed" if green else "1 failed"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    def those(*failing: int) -> Runs:
        runs = Runs(*failing)
        monkeypatch.setattr(everywhere, "run", runs)
        return runs

    return those


# -- which settings there are


def test_each_python_that_is_here_with_the_oldest_and_the_newest_tornado(pythons: Any) -> None:
    pythons("3.10", "3.12", "2.7")
    assert [(one.python, one.program, one.tornado) for one in settings()][:4] == [
        ("3.10", "/bin/python3.10", "6.4"),
        ("3.10", "/bin/python3.10", "newest"),
        ("3.12", "/bin/python3.12", "6.4"),
        ("3.12", "/bin/python3.12", "newest"),
    ]


def test_debug_mode_and_uvloop_on_the_newest_that_is_here(pythons: Any) -> None:
    pythons("3.11", "3.12")
    assert [one.name for one in settings()][4:] == [
        "python 3.12, tornado newest, -X dev -W error",
        "python 3.12, tornado newest, --loop uvloop",
    ]


def test_every_supported_python_is_asked_for() -> None:
    setup = (everywhere.ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'python_requires=">={everywhere.PYTHONS[0]}"' in setup
    assert f'"tornado>={everywhere.OLDEST_TORNADO}"' in setup


def test_a_name_on_path_that_does_not_run_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, status in (("shims", 127), ("real", 0)):
        program = tmp_path / folder / "python3.12"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nexit {status}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}::{tmp_path / 'none'}:{tmp_path / 'real'}")
    assert interpreter("3.12") == str(tmp_path / "real" / "python3.12")
    assert interpreter("3.13") is None
    monkeypatch.setenv("PATH", str(tmp_path / "shims"))
    assert interpreter("3.12") is None


# -- what is told


def test_a_line_for_each_run_and_a_seed_of_its_own(pythons: Any, runs: Any, capsys: Any) -> None:
    pythons("3.11")
    asked = runs().asked
    assert main(["--seed", "100", "--repeats", "2", "--only", "6.4", "-k", "pool"]) == 0
    name = "python 3.11, tornado 6.4"
    assert asked == [(name, 100, ["-k", "pool"]), (name, 101, ["-k", "pool"])]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}, seed 100, ") and lines[0].endswith(" s: 7 passed")
    assert lines[1:] == [lines[0].replace("seed 100", "seed 101"), "2 runs, 0 failed"]


def test_one_run_that_fails_is_enough_to_fail(pythons: Any, runs: Any, capsys: Any) -> None:
    pythons("3.11")
    asked = runs(2).asked
    assert main([]) == 1
    assert len(asked) == 4, "the others are run nevertheless"
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs, 1 failed"


def test_nothing_to_run_is_no_success(pythons: Any, runs: Any, capsys: Any) -> None:
    pythons()
    assert (main([]), runs().asked) == (1, [])
    assert capsys.readouterr().out == "0 runs, 0 failed\n"


def test_a_failed_run_names_its_tests_and_where_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[list[str]] = []

    def ran(line: list[Any], **options: Any) -> Any:
        lines.append([str(one) for one in line])
        said = (
            "E  assert\nFAILED tests/test_x.py::test_y - what\nERROR tests/z\n1 failed, 1 error\n"
        )
        return subprocess.CompletedProcess(line, 1, said, "more")

    monkeypatch.setattr(everywhere, "ROOT", tmp_path)
    monkeypatch.setattr(everywhere, "VENVS", tmp_path)
    monkeypatch.setattr(everywhere, "environment", lambda setting: Path("python"))
    monkeypatch.setattr(subprocess, "run", ran)
    setting = Setting("3.12", "", "newest", ("-X", "dev"), ("--loop", "uvloop"))
    green, told = everywhere.run(setting, 5, ["-k", "pool"])
    assert not green
    assert told.splitlines() == [
        "1 failed, 1 error",
        "    FAILED tests/test_x.py::test_y - what",
        "    ERROR tests/z",
        "    all of it in failed-3.12-newest-5.txt",
    ]
    assert (tmp_path / "failed-3.12-newest-5.txt").read_text().endswith("1 error\nmore")
    assert lines == [
        "python -X dev -m pytest -q -n 2 --random-order --random-order-seed=5"
        " --loop uvloop -k pool".split()
    ]


def test_an_environment_that_cannot_be_made_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(line: list[Any], **options: Any) -> Any:
        raise subprocess.CalledProcessError(1, line, "", "no network\n")

    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(everywhere, "ROOT", tmp_path)
    monkeypatch.setattr(everywhere, "VENVS", tmp_path)
    monkeypatch.setattr(subprocess, "run", cannot)
    told = everywhere.run(Setting("3.12", "python3.12", "newest"), 1, [])
    assert told == (False, "no environment:\n    no network")
    assert list(tmp_path.glob("*/stamp")) == []
