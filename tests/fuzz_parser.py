r"""A fuzzer, guided by coverage, of what a server sends and of what a client sends.

``python -m tests.fuzz_parser --seconds N [--side server] [directory]`` runs
what `tests.fuzz_checks` has for that side under atheris (``pip install -e
'.[fuzz]'``). It begins with the seeds of that file, and with what is in the
directory of inputs, which then grows by all that reaches new code. The input
of a fault is left there, else where it was started, as ``crash-...``, and the
exit status is not 0.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

#: The longest input; a line may have 2 048 bytes.
LONGEST_INPUT = 4096
#: What coverage is measured of.
INSTRUMENTED = ["tornado_memcache", "tests.reference"]


def arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_parser")
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--side", choices=["client", "server"], default="client")
    parser.add_argument("directory", nargs="?", help="inputs to begin with; it grows")
    return parser.parse_args()


def main() -> None:
    """Fuzzes for as long as it was told, and ends as the fuzzer did."""
    told = arguments()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as begin:
        # libFuzzer ends its process without a word to Python.
        child = os.fork()
        if not child:
            fuzz(told, Path(begin))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(status)


def fuzz(told: argparse.Namespace, begin: Path) -> None:
    """Fuzzes, with the seeds written into ``begin``. Does not return."""
    try:
        import atheris
    except ImportError:
        print("fuzz_parser: atheris is missing: pip install -e '.[fuzz]'", file=sys.stderr)
        os._exit(2)
    with atheris.instrument_imports(include=INSTRUMENTED):
        from . import fuzz_checks
    for number, seed in enumerate(fuzz_checks.seeds(told.side)):
        (begin / f"{number:05}").write_bytes(seed)
    found = Path(told.directory or begin)
    found.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": told.seconds,
        "max_len": LONGEST_INPUT,
        "print_final_stats": 1,
        "artifact_prefix": f"{told.directory or '.'}/",
    }
    line = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup([*line, *dict.fromkeys((str(found), str(begin)))], fuzz_checks.CHECKS[told.side])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
