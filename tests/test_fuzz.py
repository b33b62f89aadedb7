"""What fuzzing begins with and what it has found, replayed; and the fuzzer's command line.

``python -m tests.fuzz_parser`` looks for more.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz_checks import CHECKS, COMMITTED, seeds

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("side", CHECKS)
def test_the_corpus_is_replayed(side):
    for data in seeds(side):
        CHECKS[side](data)


@pytest.mark.parametrize("side", CHECKS)
def test_the_committed_corpus_is_small(side):
    found = list((COMMITTED / side).iterdir())
    assert found
    assert sum(path.stat().st_size for path in found) < 100_000


def test_the_smallest_inputs():
    for check in CHECKS.values():
        for data in (b"", b"\0", b"\xff", b"\0\0", b"\1\4", b"\1\4\0\0\0\0"):
            check(data)


@pytest.mark.parametrize("options", [["--seconds", "1"], ["--side", "server", "--seconds", "1"]])
def test_the_fuzzer_runs_or_says_what_it_needs(options, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_parser", *options, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if ran.returncode == 2:
        assert ran.stderr == "fuzz_parser: atheris is missing: pip install -e '.[fuzz]'\n"
        assert not list(tmp_path.iterdir())
    else:
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert "stat::number_of_executed_units" in ran.stderr
