"""The tests: real sockets, a real memcached, and a ledger kept after every test."""
