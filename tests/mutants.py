"""Puts the historic faults of the field back, one at a time: each must turn the suite red.

``python -m tests.mutants [NAME ...] [--jobs N] [--rst FILE]`` applies each
`Mutant` to a copy of the tree and runs the test files that it names. It
exits with 1 if the suite stays green with any of them. Knows how to copy,
change and run; which faults there are stands in `tests/mutant_list.py`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tornado_memcache"
#: Seconds after which a run that hangs is taken for a suite that is red.
LONGEST = 300


class Verdict(NamedTuple):
    """What a suite said of one mutant: the first test that failed, or None if all passed."""

    mutant: Mutant
    killed_by: str | None
    seconds: float


def mutated(mutant: Mutant) -> str:
    """Returns the module's source with the fault in it."""
    source = (ROOT / PACKAGE / f"{mutant.module}.py").read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text stands {source.count(mutant.old)} times")
    return source.replace(mutant.old, mutant.new)


def copy_tree(folder: Path) -> None:
    """Copies what the tests need of the tree into ``folder``."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)


def tried(mutant: Mutant) -> Verdict:
    """Runs the test files of ``mutant`` against a copy of the tree that has its fault."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        copy_tree(folder)
        (folder / PACKAGE / f"{mutant.module}.py").write_text(mutated(mutant), encoding="utf-8")
        files = [f"tests/{test}.py" for test in mutant.tests.split()]
        line = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        try:
            ran = subprocess.run(
                [*line, *files], cwd=folder, capture_output=True, text=True, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            return Verdict(mutant, f"no end within {LONGEST} s", time.monotonic() - begun)
    seconds = time.monotonic() - begun
    if ran.returncode == 0:
        return Verdict(mutant, None, seconds)
    failed = re.search(r"^(?:FAILED|ERROR) tests/([^\s\[]+)", ran.stdout, re.M)
    if ran.returncode != 1 or failed is None:
        raise RuntimeError(f"{mutant.name}: pytest ended with {ran.returncode}:\n{ran.stdout}")
    return Verdict(mutant, failed.group(1), seconds)


def as_rst(verdicts: list[Verdict]) -> str:
    """Returns the table of the docs."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 45 55", ""]
    rows = [("the fault", "the test that sees it first")]
    rows += [
        (verdict.mutant.fault, f"``{verdict.killed_by}``" if verdict.killed_by else "**none**")
        for verdict in verdicts
    ]
    for fault, test in rows:
        lines += [f"   * - {fault}", f"     - {test}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="the mutants to try (all, unless given)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--rst", type=Path, help="where to write the table")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}")
    mutants = [one for one in MUTANTS if not chosen.names or one.name in chosen.names]
    verdicts = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for verdict in pool.map(tried, mutants):
            verdicts.append(verdict)
            seen = verdict.killed_by or "SURVIVED"
            print(f"{verdict.mutant.name:32} {verdict.seconds:6.1f} s  {seen}", flush=True)
    survived = [verdict for verdict in verdicts if verdict.killed_by is None]
    print(f"{len(verdicts)} mutants, {len(survived)} survived")
    if chosen.rst is not None:
        chosen.rst.write_text(as_rst(verdicts), encoding="utf-8")
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
