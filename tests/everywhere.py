"""The suite on every Python that is here, with the oldest and the newest Tornado, in random order.

``python -m tests.everywhere [--repeats N] [--only WORD] [--seed S] [PYTEST ARGUMENTS]``
makes an environment for each in ``.venvs`` and prints a line for each run;
it exits with 1 if any failed. Knows interpreters, environments and how
pytest is started; it must not know a test.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDEST_TORNADO = "6.4"
NEWEST = "newest"


class Setting(NamedTuple):
    """One way to run the suite: an interpreter, a Tornado, and what else is asked of both.

    ``python`` is a version, ``program`` the interpreter of that version.
    """

    python: str
    program: str
    tornado: str
    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        more = " ".join(self.flags + self.arguments)
        return f"python {self.python}, tornado {self.tornado}{', ' + more if more else ''}"


def interpreter(version: str) -> str | None:
    """Returns the first ``python3.N`` on PATH that can make environments, None if there is none."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = shutil.which(f"python{version}", path=folder) if folder else None
        # (A name alone is not enough: version managers put names there that do not run.)
        if program and _runs(program):
            return program
    return None


def _runs(program: str) -> bool:
    line = [program, "-c", "import ensurepip, venv"]
    return not subprocess.run(line, capture_output=True).returncode


def settings() -> Iterator[Setting]:
    """Yields what is to be run: each Python with both Tornados, then debug mode and uvloop."""
    found = [(version, interpreter(version)) for version in PYTHONS]
    here = [(version, program) for version, program in found if program]
    for version, program in here:
        yield Setting(version, program, OLDEST_TORNADO)
        yield Setting(version, program, NEWEST)
    for version, program in here[-1:]:
        yield Setting(version, program, NEWEST, flags=("-X", "dev", "-W", "error"))
        yield Setting(version, program, NEWEST, arguments=("--loop", "uvloop"))


def environment(setting: Setting) -> Path:
    """Returns the interpreter of an environment for ``setting``, made if it is not there.

    Raises `subprocess.CalledProcessError` if that fails.
    """
    folder = VENVS / f"{setting.python}-{setting.tornado}"
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = (ROOT / "setup.py").read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _told([setting.program, "-m", "venv", folder])
    tornado = "tornado" if setting.tornado == NEWEST else f"tornado=={setting.tornado}"
    line = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-U"]
    _told([*line, "-e", f"{ROOT}[test]", tornado])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _told(line: list[Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)


def run(setting: Setting, seed: int, more: list[str]) -> tuple[bool, str]:
    """Runs the suite once; returns whether it is green, and what there is to tell."""
    try:
        python = environment(setting)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        return False, "\n    ".join(["no environment:", *said[-5:]])
    line = [python, *setting.flags, "-m", "pytest", "-q", "-n", "2"]
    line += ["--random-order", f"--random-order-seed={seed}", *setting.arguments, *more]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    told = ran.stdout.strip().splitlines()[-1:] or [ran.stderr.strip()[-200:]]
    if ran.returncode:
        told += re.findall(r"^(?:FAILED|ERROR) .*", ran.stdout, re.M)
        log = VENVS / f"failed-{setting.python}-{setting.tornado}-{seed}.txt"
        log.write_text(ran.stdout + ran.stderr, encoding="utf-8")
        told.append(f"all of it in {log.relative_to(ROOT)}")
    return ran.returncode == 0, "\n    ".join(told)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.everywhere",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each setting")
    parser.add_argument("--only", default="", help="only settings whose name has this in it")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    chosen, more = parser.parse_known_args(arguments)
    failed = runs = 0
    for setting in [one for one in settings() if chosen.only in one.name]:
        for _ in range(chosen.repeats):
            begun, seed = time.monotonic(), chosen.seed + runs
            green, told = run(setting, seed, more)
            runs, failed = runs + 1, failed + (not green)
            took = time.monotonic() - begun
            print(f"{setting.name}, seed {seed}, {took:.0f} s: {told}", flush=True)
    print(f"{runs} runs, {failed} failed")
    return int(bool(failed) or not runs)


if __name__ == "__main__":
    sys.exit(main())
