"""Every code block of docs/deployment.rst that a reader might paste is run."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "deployment.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_pasted_block_runs(number: int) -> None:
    source = "\n".join(line[4:] for line in BLOCKS[number].splitlines())
    names: dict[str, Any] = {"__name__": "pasted"}
    exec(compile(source, f"block {number} of deployment.rst", "exec"), names)
    for value in names.values():
        if callable(getattr(value, "close", None)) and not isinstance(value, type):
            with contextlib.suppress(TypeError):
                value.close()
