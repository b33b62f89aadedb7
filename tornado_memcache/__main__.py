"""``python -m tornado_memcache WORD ...``: see `.cli`, which knows the words."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
