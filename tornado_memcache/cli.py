"""The command line: ``python -m tornado_memcache WORD ...``.

Knows the words, the module behind each, and how an error is told there: in
one line on stderr, without a traceback. It must not know what a word does or
which flags it takes. The module of a word has two functions::

    add_arguments(parser)     # an argparse.ArgumentParser
    run(arguments) -> int     # what argparse made of them -> the exit status

and is imported only when its word is used. `.InvalidRequest` raised by
``run`` is a wrong flag or file: status 2, as for what argparse refuses.
Another `.MemcacheError` or an `OSError` is status 1, Ctrl-C is 130.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from .errors import InvalidRequest, MemcacheError

PROGRAM = "python -m tornado_memcache"


class Word(NamedTuple):
    """A word of the command line: the module that knows it, and what it does."""

    module: str
    does: str


#: The words, in the order in which ``--help`` lists them.
WORDS: dict[str, Word] = {
    "server": Word("server_command", "serve a memcached out of this process's memory"),
    "proxy": Word("proxy_command", "serve memcached clients by asking several memcacheds"),
}


class _Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line, and not how everything is used."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _parser(word: str) -> argparse.ArgumentParser:
    """Returns the parser of all words, of which only ``word`` knows its flags."""
    parser = _Parser(prog=PROGRAM, description="The memcached client for Tornado, at a terminal.")
    words = parser.add_subparsers(metavar="WORD", dest="word", required=True)
    for name, (module, does) in WORDS.items():
        one = words.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        if name == word:
            behind = importlib.import_module(f".{module}", __package__)
            behind.add_arguments(one)
            one.set_defaults(run=behind.run)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the word that ``arguments`` (without the program's name) begin with.

    Returns the exit status. What argparse refuses, and ``--help``, end in
    `SystemExit`, as argparse does it.
    """
    parsed = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except (MemcacheError, OSError) as error:
        said = " ".join(str(error).split())
        print(f"{PROGRAM} {parsed.word}: {said}", file=sys.stderr)
        return 2 if isinstance(error, InvalidRequest) else 1
    return status
