"""The suite on every Python that is here, with the oldest and the newest Tornado, in random order.

``python -m tests.everywhere [--repeats N] [--only WORD] [--seed S] [PYTEST ARGUMENTS]``
makes an environment for each in ``.venvs`` and prints a line for each run;
it exits with 1 if any failed. Knows interpreters, environments and how
pytest is started; it must not know a test.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDEST_TORNADO = "6.4"


class Setting(NamedTuple):
    """One way to run the suite: an interpreter, a Tornado, and what else is asked of both."""

    python: str
    tornado: str
    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        more = " ".join(self.flags + self.arguments)
        return f"python {self.python}, tornado {self.tornado}{', ' + more if more else ''}"


def settings() -> Iterator[Setting]:
    """Yields what is to be run: each Python with both Tornados, then debug mode and uvloop."""
    here = [python for python in PYTHONS if shutil.which(f"python{python}")]
    for python in here:
        yield Setting(python, OLDEST_TORNADO)
        yield Setting(python, "newest")
    for python in here[-1:]:
        yield Setting(python, "newest", flags=("-X", "dev", "-W", "error"))
        yield Setting(python, "newest", arguments=("--loop", "uvloop"))


def environment(setting: Setting) -> Path:
    """Returns the interpreter of an environment for ``setting``, made if it is not there."""
    folder = VENVS / f"{setting.python}-{setting.tornado}"
    python = folder / "bin" / "python"
    wanted = (ROOT / "setup.py").read_text(encoding="utf-8")
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([f"python{setting.python}", "-m", "venv", folder], check=True)
    tornado = f"tornado=={setting.tornado}" if setting.tornado != "newest" else "tornado"
    line = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*line, "-e", f"{ROOT}[test]", tornado], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run(setting: Setting, seed: int, more: list[str]) -> tuple[bool, str]:
    """Runs the suite once; returns whether it is green, and pytest's last line."""
    line = [environment(setting), *setting.flags, "-m", "pytest", "-q", "-n", "2"]
    line += ["--random-order", f"--random-order-seed={seed}", *setting.arguments, *more]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    last = ran.stdout.strip().splitlines()[-1:] or [ran.stderr.strip()[-200:]]
    if ran.returncode:
        failed = re.findall(r"^(?:FAILED|ERROR) .*", ran.stdout, re.M)
        log = VENVS / f"failed-{seed}.txt"
        log.write_text(ran.stdout + ran.stderr, encoding="utf-8")
        last += [f"    {one}" for one in failed] + [f"    all of it in {log.relative_to(ROOT)}"]
    return ran.returncode == 0, "\n".join(last)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.everywhere", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each setting")
    parser.add_argument("--only", default="", help="only settings whose name has this in it")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    chosen, more = parser.parse_known_args()
    failed = runs = 0
    for setting in [one for one in settings() if chosen.only in one.name]:
        for _ in range(chosen.repeats):
            begun, seed = time.monotonic(), chosen.seed + runs
            green, told = run(setting, seed, more)
            runs, failed = runs + 1, failed + (not green)
            took = time.monotonic() - begun
            print(f"{setting.name}, seed {seed}, {took:.0f} s: {told}", flush=True)
    print(f"{runs} runs, {failed} failed")
    return bool(failed or not runs)


if __name__ == "__main__":
    sys.exit(main())
