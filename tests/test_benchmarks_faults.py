"""The harness that does the same faults to all clients: it tells right from wrong.

Tries a few of the quick faults on this client, and one on a peer that is
known to fail, which shows that the harness can see it. Which peer withstands
what is for the documentation.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks import clients
from benchmarks.fault_bench import (
    Outcome,
    judge_end,
    judge_failure,
    judge_reads,
    value_of,
)
from benchmarks.fault_cases import CASES
from benchmarks.fault_table import as_rst, as_text
from benchmarks.faults import supervised, try_apart

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_this_client_withstands_and_a_peer_that_does_not_is_found_out():
    right = ("cancelled", "end_at_edge", "unsolicited")
    refused = ("partial", "other_key", "terabyte", "refused")
    with ThreadPoolExecutor(4) as pool:
        peer = pool.submit(try_apart, "cancelled", "python_memcached")
        found = list(pool.map(try_apart, right + refused, repeat("ours")))
    words = {one["fault"]: one["word"] for one in found}
    assert words == dict.fromkeys(right, "right") | dict.fromkeys(refused, "error"), found
    # (None: an error that is not at once, as it may be on a loaded machine.)
    assert not [one for one in found if one["good"] is False]
    assert (peer.result()["word"], peer.result()["good"]) == ("wrong value", False)
    assert "value of alice" in peer.result()["detail"]


def test_a_run_is_kept_as_json_and_rst(tmp_path):
    line = [sys.executable, "-m", "benchmarks.faults", "--quiet", "--clients", "ours"]
    line += ["--faults", "other_key", "--json", "found.json", "--rst", "found.rst"]
    line[-3], line[-1] = str(tmp_path / line[-3]), str(tmp_path / line[-1])
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["word"] for one in found["results"]] == ["error"]
    assert as_text(found) == ended.stdout.rstrip("\n")
    assert as_rst(found) == (tmp_path / "found.rst").read_text()


def test_a_client_that_spins_or_hangs_or_crashes_is_a_result():
    with ThreadPoolExecutor(3) as pool:
        spins = pool.submit(supervised, python("while True: pass"), 2.0)
        hangs = pool.submit(supervised, python("import time; time.sleep(60)"), 2.0)
        crashes = pool.submit(supervised, python("raise SystemExit('broken')"), 30)
    words = [one.result()["word"] for one in (spins, hangs, crashes)]
    assert words == ["spins", "hangs", "crashed"]
    assert "broken" in crashes.result()["detail"]


# -- verdicts


def value(key: str, of: str) -> tuple[str, Outcome]:
    return key, Outcome("value", 0.0, value_of(of))


def test_one_wrong_value_outweighs_all_right_ones():
    right = [value("a", "a"), value("b", "b")]
    assert judge_reads(right).good is True
    found = judge_reads([*right, value("c", "b"), ("d", Outcome("hangs", 3.0))])
    assert (found.word, found.good) == ("wrong value", False)
    assert judge_reads([*right, ("d", Outcome("hangs", 3.0))]).word == "hangs"
    assert judge_reads([*right, ("d", Outcome("miss", 0.0))]).good is None


def test_a_failure_has_to_be_an_error_at_once():
    error = ValueError("no")
    assert judge_failure(Outcome("error", 0.01, error=error)).good is True
    assert judge_failure(Outcome("error", 0.5, error=error)).good is None
    assert judge_failure(Outcome("miss", 0.01)).good is None
    assert judge_failure(Outcome("value", 0.01, b"x")).word == "wrong value"
    assert judge_failure(Outcome("hangs", 3.0)).good is False


def test_a_call_has_to_end_by_its_deadline():
    error = ValueError("no")
    assert judge_end(Outcome("error", 0.51, error=error)).good is True
    assert judge_end(Outcome("error", 0.9, error=error)).word == "late"
    assert judge_end(Outcome("hangs", 3.0)).good is False


# -- the table


def findings(**words: tuple[str, bool | None]) -> dict[str, Any]:
    """Returns what a run over one fault finds, for clients called as given."""
    names = list(words)
    return {
        "about": {
            "clients": {
                name: {"title": name.upper(), "version": "1", "settings": "none"} for name in names
            },
            "deadline": 0.5,
            "python": "3",
            "tornado": "6",
            "memcached": "1",
            "cores": 2,
        },
        "seconds": 1,
        "faults": {"f": {"name": "f", "title": "it breaks", "about": "it is broken", "limit": 1}},
        "results": [
            {"fault": "f", "client": name, "word": word, "good": good, "figure": "", "detail": "d`"}
            for name, (word, good) in words.items()
        ],
    }


def test_the_table_marks_what_is_bad_and_says_who_is_as_good():
    found = findings(ours=("right", True), a=("right", True), b=("stale", False), c=("miss", None))
    table = as_text(found)
    assert re.search(r"1 it breaks +right +right +\*\*stale\*\* +\*miss\*\n", table)
    assert re.search(r"good, slanted, bold +1, 0, 0 +1, 0, 0 +0, 0, 1 +0, 1, 0\n", table)
    rst = as_rst(found)
    assert "As good as this client: A in row 1; B in no row; C in no row." in rst
    assert "1, B: ``d'``" in rst


def test_the_table_says_who_is_better():
    found = findings(ours=("stale", False), a=("right", True), b=("stale", False))
    assert "A in no row (better in row 1); B in no row." in as_rst(found)


def test_every_line_of_the_table_has_its_columns_under_the_rule():
    lines = as_text(findings(ours=("right", True), a=("waits on", False))).split("\n\n")[0]
    rule, *rows = lines.splitlines()
    gaps = [n for n, letter in enumerate(rule) if letter == " "]
    assert rows and all(row[n : n + 1] in (" ", "") for row in rows for n in gaps)


def test_every_fault_tells_what_is_done():
    assert len(CASES) >= 15
    assert all(case.about and case.title and case.limit <= 60 for case in CASES.values())


def test_every_adapter_is_named_and_only_those():
    folder = Path(clients.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(clients.MEASURED)
    assert set(clients.NAMES) <= set(clients.MEASURED)
