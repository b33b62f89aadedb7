"""The mutants can be made from today's sources, and a mutant that survives is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import mutants
from .mutant_list import MUTANTS, Mutant

HARMLESS = Mutant(
    "harmless",
    "no fault at all",
    "arguments",
    "#: memcached's own limit on the length of a key, in bytes.\n",
    "#: So long may a key be.\n",
    "test_arguments",
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_can_be_made_and_names_tests_that_are_there(mutant):
    compile(mutants.mutated(mutant), f"{mutant.module}.py", "exec")
    for test in mutant.tests.split():
        assert (mutants.ROOT / "tests" / f"{test}.py").exists()


def test_there_are_enough_and_each_has_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_a_text_that_has_moved_is_told():
    with pytest.raises(ValueError, match="0 times"):
        mutants.mutated(HARMLESS._replace(old="this stands nowhere"))


@pytest.mark.parametrize(
    ("names", "status", "told"),
    [
        (["key-with-a-newline"], 0, "1 mutants, 0 survived"),
        (["no-such"], 2, "there is no mutant no-such"),
    ],
)
def test_the_command(names, status, told):
    ran = subprocess.run(
        [sys.executable, "-m", "tests.mutants", *names],
        cwd=mutants.ROOT,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, told in ran.stdout + ran.stderr) == (status, True)


def test_one_that_survives_is_told():
    verdict = mutants.tried(HARMLESS)
    assert verdict.killed_by is None
    assert "**none**" in mutants.as_rst([verdict])
