"""This client and its peers, measured side by side on this machine.

``python -m benchmarks`` times them, ``python -m benchmarks.report`` makes the
tables and plots of the documentation from what it kept, ``python -m
benchmarks.calls`` counts the function calls of a get, and ``python -m
benchmarks.faults`` does the same harm to all of them and prints what came of
it. Runs from a checkout: the servers and proxies are those of the tests. The
peers come with the extra ``benchmarks`` of setup.py; those that are not
installed are left out.
"""
