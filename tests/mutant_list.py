"""The historic faults of the field, each as a change to one module of the package.

Knows what was wrong where, and which test files have to see it. It must
not know how a change is applied or a test is run.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: ``old`` stands once in ``module`` and becomes ``new``; ``tests`` must see it."""

    name: str
    fault: str
    module: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # -- other people's data
    Mutant(
        "cancelled-slot-leaves",
        "a cancelled call takes its slot with it, and the next caller gets its reply "
        "(redis-py until 4.5.5, aiomcache)",
        "connection",
        '        """A caller of ``slot`` went away; the slot stays until it is answered."""\n',
        "        if slot in self._protocol.owed and slot.abandoned():\n"
        "            self._protocol.owed.remove(slot)\n",
        "test_faults_replies test_call",
    ),
    Mutant(
        "timed-out-slot-leaves",
        "a timed-out call takes its slot with it (aiomcache, python-memcached)",
        "connection",
        "            slot = live.pop()\n",
        "            slot = live.pop()\n"
        "            if slot in self._protocol.owed:\n"
        "                self._protocol.owed.remove(slot)\n",
        "test_faults_replies test_pool",
    ),
    Mutant(
        "key-not-checked",
        "the key of a VALUE is not compared with the one that was asked for",
        "slots",
        "        raise self._bad_item(data[position - 6 : end])\n",
        "        return stop, index\n",
        "test_faults_malformed test_protocol",
    ),
    Mutant(
        "unasked-bytes-kept",
        "bytes that nobody asked for are left for the next caller",
        "protocol",
        '                    raise ProtocolError("the server sent bytes that nobody asked for")\n',
        "                    self._keep(data[position:])\n                    return finished\n",
        "test_faults_malformed test_protocol",
    ),
    Mutant(
        "late-connection-reused",
        "a connection that owes late replies takes new calls",
        "choice",
        "    return connection.open and not (connection.late or connection.leaving)\n",
        "    return connection.open and not connection.leaving\n",
        "test_faults_replies test_choice",
    ),
    # -- framing
    Mutant(
        "framed-by-the-end-of-the-buffer",
        "a reply is taken for whole when the segment ends in END (emcache)",
        "slots",
        "                self._index = index\n                if length <= STREAMED_BLOCK:\n",
        "                self._index = index\n"
        '                if data.endswith(b"END\\r\\n"):\n'
        "                    self._end()\n"
        "                    return size\n"
        "                if length <= STREAMED_BLOCK:\n",
        "test_faults_in_flight test_protocol",
    ),
    Mutant(
        "block-end-not-checked",
        "the CRLF behind a data block is taken for granted",
        "slots",
        "            if data[stop] != 13 or data[stop + 1] != 10:\n",
        "            if False:\n",
        "test_faults_malformed test_protocol",
    ),
    Mutant(
        "large-block-end-not-checked",
        "the CRLF behind a large data block is taken for granted",
        "protocol",
        '            if bytes(block[size - 2 : size]) == b"\\r\\n":\n',
        "            if True:\n",
        "test_faults_malformed test_protocol",
    ),
    Mutant(
        "lengths-read-by-int",
        "lengths and flags are read by int(): `+5`, `-1`, `1_0` and other digits pass (aiomcache)",
        "protocol",
        "    if not _DIGITS.match(digits) or (number := int(digits)) >> bits:\n",
        "    if (number := int(digits)) >> 200:\n",
        "test_faults_malformed test_text",
    ),
    Mutant(
        "length-not-bounded",
        "a length of a terabyte is believed and allocated",
        "slots",
        "            if length > limit or (cas_unique is None) is not without_cas:\n",
        "            if (cas_unique is None) is not without_cas:\n",
        "test_faults_malformed test_protocol",
    ),
    Mutant(
        "line-not-bounded",
        "a line without an end is gathered for ever (290 MB in emcache and pymemcache)",
        "protocol",
        '        end = data.find(b"\\r\\n", position, position + MAX_LINE)\n'
        "        if end < 0 and len(data) - position >= MAX_LINE:\n",
        '        end = data.find(b"\\r\\n", position)\n        if False:\n',
        "test_faults_malformed test_protocol",
    ),
    # -- connections that are out of step
    Mutant(
        "storage-error-keeps",
        "a connection is kept after CLIENT_ERROR to a set, although memcached answers twice",
        "slots",
        '        if isinstance(error, ClientError) and self.verb.shape == "storage":\n',
        "        if False:\n",
        "test_faults_replies test_pool",
    ),
    Mutant(
        "noreply-error-attributed",
        "the error of a noreply request is taken for the next one's (pymemcache)",
        "refusals",
        "    if slot.confirms:\n",
        "    if False:\n",
        "test_faults_replies test_pool",
    ),
    Mutant(
        "error-amid-items-keeps",
        "a connection is kept after an error in the middle of its items",
        "slots",
        "            if self._index:\n",
        "            if False:\n",
        "test_faults_replies test_protocol",
    ),
    Mutant(
        "eof-not-noticed",
        "the end of the stream is no news: the reader spins or waits (aiomcache)",
        "stream",
        "        else:\n            self.close()\n            return False\n        return True\n",
        "        return True\n",
        "test_stream test_faults_in_flight",
    ),
    # -- order and retries
    Mutant(
        "writes-retried",
        "a write whose bytes had left is sent once more",
        "retry",
        "isinstance(error, ConnectionFailed) and slot.idempotent and not slot.begun()",
        "isinstance(error, ConnectionFailed) and not slot.begun()",
        "test_faults_replies test_pool test_retry",
    ),
    Mutant(
        "retried-for-ever",
        "a call is tried again as long as connections close",
        "retry",
        "        elif opened_at >= slot.lost_at:\n",
        "        elif False:\n",
        "test_faults_replies test_retry test_faults_connect",
    ),
    Mutant(
        "dead-write-is-sent",
        "a write that timed out in line leaves all the same and overwrites a newer one",
        "outbox",
        "            if slot.abandoned():\n",
        "            if False:\n",
        "test_call test_outbox",
    ),
    Mutant(
        "get-overtakes-set",
        "a get of a tick overtakes a write of its key on another connection",
        "choice",
        "            if keys and any(key in keys for key in slot.keys):\n",
        "            if False:\n",
        "test_order test_faults_in_flight test_faults_replies",
    ),
    Mutant(
        "cas-after-restart",
        "a cas unique from before a restart matches whatever has its number now",
        "outcomes",
        "        return self.pool is pool and self.generation == pool.generation\n",
        "        return self.pool is pool\n",
        "test_faults_in_flight test_outcomes",
    ),
    # -- deadlines
    Mutant(
        "timer-stays",
        "the timer of the last call stays on the loop (emcache's pool purge)",
        "deadlines",
        "        self._settling = False\n        if not self._busy:\n            self._disarm()\n",
        "        self._settling = False\n",
        "test_deadlines test_call",
    ),
    Mutant(
        "one-timer-is-set-once",
        "one timer for all, and an earlier deadline does not set it anew (tornadoasyncmemcache)",
        "deadlines",
        "        if moment < self._watched:\n",
        "        if self._watched == NEVER:\n",
        "test_deadlines test_call",
    ),
    Mutant(
        "timer-wins-over-the-socket",
        "after a blocked loop a call times out although its reply is there",
        "deadlines",
        "                for lane in list(self._busy):\n                    lane.catch_up()\n",
        "",
        "test_deadlines test_call",
    ),
    Mutant(
        "wall-clock",
        "deadlines go by the wall clock",
        "deadlines",
        "clock = time.monotonic\n",
        "clock = lambda: time.time()\n",
        "test_deadlines test_faults_our_side",
    ),
    Mutant(
        "late-connection-stays",
        "a connection that never answers again is kept for ever",
        "connection",
        "        if self._close_at <= now and not self.closed:\n",
        "        if False:\n",
        "test_pool test_faults_replies",
    ),
    # -- the dead
    Mutant(
        "death-by-calls",
        "every timed-out call counts: one stall of a busy server kills it",
        "health",
        "        elif asked_at >= self._silent_since or not self._silences:\n",
        "        else:\n",
        "test_health test_faults_in_flight",
    ),
    Mutant(
        "no-pause",
        "a dead server is asked by every call",
        "health",
        "        return not self.probing and now >= self.dead_until\n",
        "        return True\n",
        "test_health test_faults_servers",
    ),
    Mutant(
        "dead-for-30-s",
        "a restarted server costs 30 s of misses (python-memcached)",
        "health",
        "min(self._pause * 2 or FIRST_PAUSE, longest, self._dead_retry)",
        "self._dead_retry",
        "test_health test_recovery",
    ),
    Mutant(
        "no-limit-of-connections",
        "a thousand cold calls open a thousand connections",
        "growth",
        "        if self.may_grow() and not any(one.connecting for one in self._connections):\n",
        "        if not self.closed:\n",
        "test_pool test_faults_our_side",
    ),
    Mutant(
        "lost-place",
        "a caller that is cancelled in line keeps its place (pymemcache's pool)",
        "pool",
        "        while line and line.first.abandoned():\n"
        "            self.pending -= line.pop().weight\n",
        "",
        "test_call test_faults_our_side",
    ),
    # -- the caller's side
    Mutant(
        "callback-kills-the-reader",
        "what a callback raises goes into the reader and closes the connection",
        "boundaries",
        "    except (Exception, asyncio.CancelledError) as error:\n"
        "        raised_by(callback, error, context, entry)\n"
        "        return\n",
        "    except ZeroDivisionError:\n        return\n",
        "test_call test_client",
    ),
    Mutant(
        "somebody-elses-context",
        "a callback runs in the context of whoever opened the connection",
        "call",
        "        self._context: Context = copy_context()\n",
        "        self._context: Context = Context()\n",
        "test_boundaries",
    ),
    Mutant(
        "failing-fallback-comes-back",
        "a failing fail_callback is called for its own failure, for ever",
        "boundaries",
        "        run(fail_callback, error, context, self.outer)\n",
        "        run(fail_callback, error, context, self)\n",
        "test_boundaries test_faults_our_side",
    ),
    Mutant(
        "cancelled-future-breaks-the-reader",
        "a reply to a future that was cancelled raises in the reader (emcache, aiomcache)",
        "gathered",
        "                if not waiter.done():\n                    waiter.set_result(item[0])\n",
        "                waiter.set_result(item[0])\n",
        "test_gathered test_faults_replies test_faults_cancel",
    ),
    Mutant(
        "fork-shares-the-socket",
        "a child of fork writes on the parent's connections",
        "cluster",
        "        return self.loop is not None and self._pid != os.getpid()\n",
        "        return False\n",
        "test_order test_faults_our_side",
    ),
    # -- what comes in and goes out
    Mutant(
        "key-with-a-newline",
        "a key is checked by a pattern that ends in $: `foo\\n` passes (python-memcached)",
        "arguments",
        "    if wire.translate(None, _VISIBLE) or",
        '    if wire.removesuffix(b"\\n").translate(None, _VISIBLE) or',
        "test_bad_input test_arguments",
    ),
    Mutant(
        "key-of-any-length",
        "a key of over 250 bytes is sent, and its value is run as a command",
        "arguments",
        "not len(prefix) < len(wire) <= MAX_KEY_LENGTH:\n        raise",
        "not len(prefix) < len(wire):\n        raise",
        "test_bad_input test_arguments",
    ),
    Mutant(
        "flags-not-checked",
        'flags="0 0 1 noreply" or -1 goes into the line as it is (pymemcache)',
        "text",
        '    check_integer("flags", request.flags, 0, (1 << 32) - 1)\n',
        "",
        "test_bad_input test_text",
    ),
    Mutant(
        "bomb",
        "what is decompressed has no limit",
        "compression",
        "                if room < 0:\n",
        "                if False:\n",
        "test_compression",
    ),
    Mutant(
        "pickle-is-read",
        "a pickle in the cache is read, and runs its writer's code",
        "serializer",
        "        if flags == FLAG_PICKLE:\n",
        '        if flags == FLAG_PICKLE:\n            return __import__("pickle").loads(data)\n'
        "        if flags == FLAG_PICKLE:\n",
        "test_pickles test_serializer",
    ),
    Mutant(
        "read-interest-dropped",
        "reading stops while a write is pending: two sides with large values stand still",
        "stream",
        "        return not self.closed()\n\n    def read_from_fd",
        "        return super().reading()\n\n    def read_from_fd",
        "test_connection test_stream",
    ),
    Mutant(
        "any-certificate",
        "TLS without verification",
        "tls",
        "        context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "        context.check_hostname = False\n        context.verify_mode = ssl.CERT_NONE\n",
        "test_tls",
    ),
]
