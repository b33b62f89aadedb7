"""Every code block of docs/meta.rst is run, and prints what the text around it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "meta.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)
#: What each prints, by a word that only it has.
PRINTED = {
    "vivify": r"computed for (600|599) s more; stale: False\ncomputed stale: True won: True\n",
    "set_if_newer": r"(True\nFalse\n|.*older than one of the flags.*\n)",
}


def test_every_block_is_run():
    assert len(BLOCKS) == len(PRINTED)


@pytest.mark.parametrize("word", PRINTED)
def test_a_block_prints_what_is_told(word, memcached, tmp_path):
    (found,) = [block for block in BLOCKS if word in block]
    source = "\n".join(line[4:] for line in found.splitlines()) + "\n"
    assert "127.0.0.1:11211" in source
    (tmp_path / "pasted.py").write_text(source.replace("127.0.0.1:11211", memcached.address))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "pasted.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(PRINTED[word], ended.stdout.replace("  ", " ")), ended.stdout
