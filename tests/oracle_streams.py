"""The streams of `tests.oracle`: requests, right and wrong, as bytes.

`STREAMS` are of several requests each; `LINES`, `ODD_LINES`, `BLOCKS` and
`ODD_BLOCKS` are single requests. What is not here, and why, is told in
`tests.oracle`. It must not know who is asked.
"""

from __future__ import annotations


def listed(text: bytes) -> list[bytes]:
    """Returns the lines that stand in ``text``, with bars between them."""
    return [line.strip() for line in text.replace(b"\n", b"|").split(b"|") if line.strip()]


KEY = b"k" * 250
BIG = b"x" * 1_048_516  # (the largest value under a key of one byte)


def store(
    key: bytes, value: bytes, words: bytes = b"0 0", verb: bytes = b"set", tail: bytes = b""
) -> bytes:
    return b"%b %b %b %d%b\r\n%b\r\n" % (verb, key, words, len(value), tail, value)


#: Streams of several requests each, by name.
STREAMS = {
    "set and get": store(b"a", b"1") + b"get a\r\nget b\r\nget a b a\r\n",
    "gets": store(b"a", b"1") + b"gets a\r\n" + store(b"a", b"2") + b"gets a b\r\n",
    "values": store(b"a", bytes(range(256)), b"7 0") + store(b"b", b"") + b"get a b\r\n",
    "a value like requests": store(b"a", b"get a\r\nEND\r\n") + b"get a\r\n",
    "the longest key": store(KEY, b"1") + b"get " + KEY + b"\r\n",
    "too long a key": b"get a " + KEY + b"k b\r\nversion\r\n",
    "too long a key, gat": b"gat 0 a " + KEY + b"k b\r\nversion\r\n",
    "too long a key, set": store(KEY + b"k", b"1") + b"version\r\n",
    "too long a key, noreply": store(KEY + b"k", b"1", tail=b" noreply") + b"version\r\n",
    "too long a key elsewhere": b"".join(
        line % (KEY + b"k")
        for line in (b"delete %b\r\n", b"incr %b 1\r\n", b"touch %b 0\r\n")
    ),
    "keys of odd bytes": store(b"\x01\t\x7f\xff", b"1") + b"get \x01\t\x7f\xff\r\n",
    "many keys": store(b"k99", b"1") + b"get" + b"".join(b" k%d" % i for i in range(100)) + b"\r\n",
    "add replace": store(b"a", b"1", verb=b"replace") + store(b"a", b"2", verb=b"add")
    + store(b"a", b"3", verb=b"add") + store(b"a", b"4", verb=b"replace") + b"gets a\r\n",
    "append prepend": store(b"a", b"1", verb=b"append") + store(b"a", b"1", verb=b"prepend")
    + store(b"a", b"b", b"5 0") + store(b"a", b"c", b"6 -1", b"append")
    + store(b"a", b"a", b"6 -1", b"prepend") + b"gets a\r\n",
    "cas": store(b"a", b"1") + store(b"a", b"2", verb=b"cas", tail=b" 0")
    + store(b"a", b"3", verb=b"cas", tail=b" %CAS%")
    + store(b"a", b"4", verb=b"cas", tail=b" %CAS%")
    + store(b"b", b"5", verb=b"cas", tail=b" 1") + b"gets a b\r\n",
    "cas, bad": store(b"a", b"1", verb=b"cas") + store(b"a", b"1", verb=b"cas", tail=b" x")
    + store(b"a", b"1", verb=b"cas", tail=b" -1") + store(b"a", b"1", verb=b"cas", tail=b" 1 2 3")
    + store(b"a", b"1", verb=b"cas", tail=b" noreply") + b"version\r\n",
    "cas, noreply": store(b"a", b"1", verb=b"cas", tail=b" 1 noreply")
    + store(b"a", b"1") + store(b"a", b"2", verb=b"cas", tail=b" %CAS% noreply") + b"gets a\r\n",
    "failed stores take no cas_unique": store(b"a", b"1") + store(b"a", b"2", verb=b"add")
    + store(b"b", b"2", verb=b"replace") + store(b"b", b"2") + b"gets a b\r\n",
    "delete": store(b"a", b"1") + b"delete a\r\ndelete a\r\nget a\r\n",
    "delete, odd": store(b"a", b"1") + b"delete\r\ndelete a 0\r\ndelete a 5\r\ndelete a noreply\r\n"
    b"delete a 0 noreply\r\ndelete a 1 noreply\r\ndelete a x noreply\r\ndelete a 0 0\r\n"
    b"delete a 0 noreply x\r\ndelete noreply\r\nget a\r\n",
    "touch": store(b"a", b"1") + b"touch a 100\r\ntouch b 1\r\ngets a\r\ntouch a -1\r\nget a\r\n",
    "touch, bad": b"touch\r\ntouch a\r\ntouch a x\r\ntouch a 1 2\r\ntouch a 1 2 3\r\n"
    b"touch a noreply\r\ntouch a 1 noreply\r\nversion\r\n",
    "gat": store(b"a", b"1") + b"gat 100 a b a\r\ngats 0 a\r\ngat -1 a\r\nget a\r\n",
    "gat, bad": b"gat\r\ngats\r\ngat 0\r\ngat x\r\ngat x a\r\ngat 1.5 a\r\ngax 0 a\r\n",
    "exptime": b"".join(
        store(b"a", b"1", b"0 " + exptime) + b"get a\r\n"
        for exptime in (b"0", b"100", b"-1", b"2592000", b"2592001", b"4102444800", b"4294967296",
                        b"4294967396", b"2147483648", b"+100", b"-0", b"x", b"", b"1e3",
                        b"9223372036854775808", b"99999999999999999999")
    ),
    "flags": b"".join(
        store(b"a", b"1", flags + b" 0") + b"get a\r\n"
        for flags in (b"4294967295", b"4294967296", b"-1", b"+5", b"0x5", b"1.5", b"5\t6", b"-0",
                      b"-18446744073709551615", b"18446744073709551616", b"9223372036854775808",
                      b"-9223372036854775808", b"0005", b"\t5", b"5\x0b")
    ),
    "lengths": b"".join(
        b"set a 0 0 %b\r\n1\r\nversion\r\n" % length
        for length in (b"1", b"+1", b"01", b"4294967297", b"-1", b"1x", b"0x1", b"", b"x", b"1.0",
                       b"2147483646", b"2147483647", b"-4294967295", b"99999999999999999999")
    ),
    "a block too short": b"set a 0 0 10\r\nabc\r\nversion\r\nversion\r\nget a\r\n",
    "a block too long": b"set a 0 0 3\r\nabcdef\r\nversion\r\nget a\r\n",
    "a block too long, noreply": b"set a 0 0 3 noreply\r\nabcdef\r\nversion\r\nget a\r\n",
    "a block too long by one": b"set a 0 0 3\r\nabcd\r\nversion\r\n",
    "a block with a bare LF": b"set a 0 0 1\r\nx\nversion\r\nversion\r\n",
    "a bad block leaves the old": store(b"a", b"1") + b"set a 0 0 1\r\nxyz\r\nget a\r\n",
    "the largest value": store(b"a", BIG) + b"get a\r\n",
    "too large": store(b"a", b"1") + store(b"a", BIG + b"x") + b"get a\r\n",
    "too large with flags": store(b"a", b"1") + store(b"a", BIG, b"1 0") + b"get a\r\n",
    "too large, add": store(b"a", b"1") + store(b"a", BIG + b"x", verb=b"add") + b"get a\r\n",
    "too large, noreply": store(b"a", b"1") + store(b"a", BIG + b"x", tail=b" noreply")
    + b"get a\r\n",
    "too large, appended": store(b"a", BIG[:-5], b"3 0") + store(b"a", b"123456", verb=b"append")
    + store(b"a", b"1", verb=b"append") + b"gets b\r\n" + store(b"b", b"") + b"gets b\r\n",
    "incr decr": store(b"n", b"10", b"3 0") + b"incr n 5\r\ngets n\r\ndecr n 6\r\ngets n\r\n"
    b"decr n 100\r\ngets n\r\nincr n 18446744073709551615\r\ngets n\r\nincr n 2\r\ngets n\r\n"
    b"incr m 1\r\ndecr m 1\r\n",
    "incr, values": b"".join(
        store(b"n", value) + b"incr n 1\r\nget n\r\ndecr n 3\r\nget n\r\n"
        for value in (b"", b" ", b"10 ", b"10  abc", b"abc", b" 10", b"-1", b"+5", b"00010", b"1.5",
                      b"18446744073709551615", b"18446744073709551616", b"1" * 25, b"99999",
                      b"0" * 25 + b"7", b"5\0x", b"\t5", b"5\tx", b"-18446744073709551615",
                      b"1\r\nx", b"\r\n7", b"5x", b"0")
    ),
    "incr, deltas": store(b"n", b"10") + b"".join(
        b"incr n %b\r\ndecr n %b\r\nget n\r\n" % (delta, delta)
        for delta in (b"0", b"-1", b"+1", b"1.5", b"x", b"", b"18446744073709551615",
                      b"18446744073709551616", b"-18446744073709551615", b"1\tx", b"noreply")
    ),
    "incr, words": store(b"n", b"1") + b"incr\r\nincr n\r\nincr n 1 2\r\nincr n 1 2 3\r\n"
    b"incr n 1 noreply\r\nincr m 1 noreply\r\nincr n x noreply\r\nget n\r\n",
    "incr of text, noreply": store(b"n", b"x") + b"incr n 1 noreply\r\nincr n 1\r\n",
    "noreply": store(b"a", b"1", tail=b" noreply")
    + store(b"a", b"2", verb=b"add", tail=b" noreply")
    + store(b"a", b"3", verb=b"append", tail=b" noreply") + b"touch a 0 noreply\r\n"
    b"verbosity 0 noreply\r\nget a\r\ndelete a noreply\r\nget a\r\nget a noreply\r\n",
    "noreply, not": store(b"a", b"1", tail=b" NOREPLY") + store(b"a", b"1", tail=b" x")
    + b"delete a NOREPLY\r\nversion noreply\r\n",
    "noreply, bad lines": b"set a 0 0 x noreply\r\nset a 0 0 noreply\r\nset a noreply\r\n"
    b"set noreply\r\nnonsense noreply\r\nversion\r\n",
    "flush_all": b"".join(
        store(b"a", b"1") + line + b"\r\nget a\r\n" + store(b"a", b"2") + b"gets a\r\n"
        for line in (b"flush_all", b"flush_all 0", b"flush_all -1", b"flush_all noreply",
                     b"flush_all 0 noreply", b"flush_all x", b"flush_all x noreply",
                     b"flush_all 0 0", b"flush_all 0 0 0", b"flush_all 2592001",
                     b"flush_all 4102444800", b"flush_all 1000", b"flush_all")
    ),
    "verbosity": b"verbosity\r\nverbosity 0\r\nverbosity x\r\nverbosity noreply\r\n"
    b"verbosity -1\r\nverbosity 0 0\r\nverbosity 0 noreply\r\nverbosity 0 0 0\r\n",
    "version": b"version\r\nversion 2 3\r\nVERSION\r\nversionx\r\n",
    "stats": b"stats reset\r\nstats nonsense\r\nstats items\r\nstats reset x\r\n",
    "unknown": b"\r\n\n \r\nx\r\nxy\r\nGET a\r\nSet a 0 0 1\r\nget\r\nget \r\ngets\r\ngetx a\r\n"
    b"a\r\nadx a\r\nappen a\r\nquitx\r\nset\r\nset a\r\nset a 0\r\nset a 0 0\r\n\x80\r\n"
    b"shutdown\r\n",
    "too many words": b"set a 0 0 1 noreply x\r\n1\r\nversion\r\nset" + b" x" * 50 + b"\r\n",
    "spaces": b"  get   a  \r\n   set  a  0  0  1  \r\n1\r\nget a\r\n get a\r\nget\ta\r\n",
    "bare LF": b"set a 0 0 1\n1\r\nget a\nversion\nget a\r\r\nget a\r\n",
    "CR in a line": b"get a\rb\r\nversion\rx\r\n\r\r\n",
    "NUL in a line": store(b"a", b"1") + b"get a\0b\r\n\0\r\nversion\0x\r\nget\0 a\r\n",
    "quit": b"version\r\nquit\r\nversion\r\n",
    "quit with words": b"version\r\nquit now noreply\r\nversion\r\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP of a known letter": b"get / HTTP/1.1\r\nsearch / HTTP/1.1\r\nversion\r\n",
    "HTTP, POST": b"POST / HTTP/1.0\r\n\r\nflush_all\r\n",
    "a line without an end": b"x" * 3000,
    "a line of 2000 bytes": b"x" * 2000 + b"\r\n" + b"set a" + b" " * 2000 + b"0 0 1\r\n1\r\n",
    "a long get": store(b"k", b"1") + b"get" + b" x" * 5000 + b" k\r\n",
    "one wins, and again when it is invalidated": b"mg k N30 t\r\nmg k N30\r\nmn\r\n"
    b"md k I T60\r\nmg k t v\r\nmg k t v\r\nmn\r\nmd k I\r\nmg k\r\nmn\r\nms k 1 C1 I\r\nx\r\n"
    b"mg k v\r\nmg k v\r\nmn\r\nms k 1 T90\r\ny\r\nmg k R30 t\r\nmg k R120 t\r\nmg k R120 t\r\n"
    b"mn\r\nmd k I q\r\nmg k R120 t v\r\n",
    "quiet to the end": b"mg k q\r\nms k 1 q\r\nx\r\nmg k q v\r\nms k 1 ME q\r\ny\r\n"
    b"ms k 2 q\r\nxyz\r\nmd z q\r\nmd k q\r\nmd k q C9\r\nma k q\r\nma k q N5 J7\r\nma k q v\r\n"
    b"mg k v q\r\nmn\r\nma k C1 q\r\nmn\r\n",
    "both dialects": b"ms k 2 F5 T90\r\n10\r\ngets k\r\nincr k 5\r\nmg k v f t c\r\nmn\r\n"
    b"append k 5 5 1\r\n0\r\nma k v\r\nmn\r\ntouch k 50\r\ngat 40 k\r\nmg k t h v f\r\nmn\r\n"
    b"add k 0 0 1\r\nx\r\ndelete k\r\nmg k\r\n",
    "nothing": b"",
}  # fmt: skip

#: Lines that announce a block, which follows on each.
BLOCKS = [
    *(
        b"%b %b%b" % (verb, rest, tail)
        for verb in (b"set", b"add", b"replace", b"append", b"prepend")
        for rest in (b"a 1 0 2", b"z 1 100 2", b"n 0 0 3")
        for tail in (b"", b" noreply")
    ),
    *(
        b"cas %b%b" % (rest, tail)
        for rest in (b"a 1 0 2 %CAS%", b"a 1 0 2 1", b"z 0 0 2 1", b"a 0 0 2 0")
        for tail in (b"", b" noreply")
    ),
    *(
        b"ms %b" % rest
        for rest in listed(b"""
    a 2 | z 2 | a 2 T90 | a 2 F7 | a 2 F4294967296 | a 2 F-1 | a 2 c | a 2 k c Oq1 | a 2 q
    z 2 q k | a 2 I | a 02 | a +2 | a 2 S | a 2 s | a 2 t f h l v u N30 R30 D1 J1
    a 2 P/x Lrack | a 2 P L | a 2 T-1 | a 2 T0 F0 | a 2 MS | a 2 ME | a 2 MA | a 2 MP | a 2 MR
    z 2 ME | z 2 MA | z 2 MP | z 2 MR | z 2 ME q | a 2 ME q | a 2 ME k c O1 | a 2 MA k c
    a 2 MP F9 T9 | z 2 MA N60 | z 2 MA N60 k c | a 2 Ms | a 2 MX | a 2 M | a 2 MSS | a 2 MX z
    a 2 C%CAS% | a 2 C%CAS% c k | a 2 C1 | a 2 C1 I | a 2 C1 I c | a 2 C1 I T900 | a 2 C0
    a 2 C0 I | a 2 C99999999 I | a 2 Cx | a 2 C | a 2 C-1 | a 2 C%CAS% MR | a 2 C1 MR I
    a 2 C1 MA | a 2 C1 MP q | a 2 C%CAS% MA | a 2 C1 ME | z 2 C1 | z 2 C0 | z 2 C1 I
    z 2 C1 ME c | z 2 C1 MA | z 2 C1 MR | s 2 | s 2 C1 I | s 2 MA | s 2 MR | a 2 Tx | a 2 T
    a 2 T1.5 | a 2 T4102444800 | a 2 T2592001 | a 2 F | a 2 Fx | a 2 Nx | a 2 Rx | a 2 Dx
    a 2 Jx | a 2 z | a 2 c c | a 2 k k | a 2 T1 T2 | a 2 ! | a 2 b | ab 2 b | YQ== 2 b k
    YQ 2 b | eg== 2 b k c O2 | YmluYXJ5 2 b MA | YmluYXJ5 2 b MP k | YmluYXJ5 2 b k | binary 2 k
    binary 2 MA k | Z=== 2 b | ==== 2 b | Y-Q== 2 b k | YQ==YQ== 2 b k
    a 2 Ox1234567890123456789012345678901 | a 2 Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | a 2 O
    a 2 MX Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    a 2 c s t f h l k Oabc v u q T5 N5 R5 P L | a 2 c s t f h l k Oabc v u q T5 N5 R5 P L D1
""")
    ),
]
#: Lines that announce a block which is none, or another one.
ODD_BLOCKS = [
    *(
        b"%b\r\n%b\r\n" % (line, block)
        for line in (b"set a 0 0 2", b"set a 0 0 2 noreply", b"ms a 2", b"ms a 2 q", b"ms a 2 z")
        for block in (b"", b"x", b"xyz", b"xyzz", b"x\nyz", b"x\r\n", b"xy\n", b"\r\n\r\n")
    ),
    *(
        line + b"\r\nxy\r\n"
        for line in (b"ms a", b"ms", b"ms a x", b"ms a -1", b"ms a 2x", b"ms a 2147483646",
                     b"ms a 99999999999999999999", b"ms a S2", b"ms a v 2", b"ms a 0x2",
                     b"ms a 2.0",
                     b"ms " + KEY + b"k 2", b"ms " + KEY + b" 2 k", b"ms a\t2", b"ms\ta 2",
                     b"ms a 4294967298", b"set a 0 0", b"set a 0 0 2 3", b"cas a 0 0 2")
    ),
    b"ms a %d q\r\n%b\r\n" % (len(BIG) + 1, BIG + b"x"),
    b"ms a %d ME k\r\n%b\r\n" % (len(BIG) + 1, BIG + b"x"),
    b"ms z %d MX\r\n%b\r\n" % (len(BIG) + 1, BIG + b"x"),
    b"ms a %d MA\r\n%b\r\n" % (len(BIG), BIG),
]  # fmt: skip
#: Lines that are a request by themselves, or are none.
LINES = listed(b"""
    get | get a | get a a | get z | get z a n | gets a | gets z | gats 5 a | gat 5 a z | gat 5
    gat x a | gat -1 a | gat 0 n | bget | bget a | bget a z | get a noreply | gat noreply
    getx a | Get a | gets | gat | delete a | delete z | delete a noreply | delete z noreply
    delete a 0 | delete a 0 noreply | delete a 1 | delete | incr n 1 | incr n 99 | decr n 1
    decr n 99 | incr z 1 | decr z 1 | incr a 1 | incr s 1 | incr s 99 | incr binary 1
    incr n 1 noreply | decr n 1 noreply | incr a 1 noreply | incr n x | incr n | incr n -1
    decr n 1 2 | incr n 1 2 3 | touch a 100 | touch z 100 | touch a 100 noreply | touch a x
    touch a | touch a -1 | touch n 0 | touch s 5 | touch | verbosity | verbosity 1
    verbosity 0 noreply | verbosity x | version | version x | version noreply | cache_memlimit
    cache_memlimit 7 | cache_memlimit 64 | cache_memlimit 64 noreply | cache_memlimit 7 noreply
    cache_memlimit x | cache_memlimit 64 x | cache_memlimit 64 1 2 | cache_memlimit 1000000001
    cache_memlimit 4294967296 | cache_memlimit 4294967295 | cache_memlimit -1
    cache_memlimit noreply | stats detail | stats detail x | stats detail off | stats cachedump
    stats cachedump x 1 | stats cachedump 64 1 | stats cachedump 63 1 | stats nonsense
    stats reset | stats reset now | stats sizes | stats sizes x | stats noreply
    stats sizes_disable | stats extstore | shutdown | quitx | xx | x | m | mx | mxx | mgx a
    MG a | mq a | misbehave | debugtime p | mn | mn x | mn q k O1 | mnx | me | me a | me z
    me a b | me a x | me a x y | me YmluYXJ5 b | me YmluYXJ5 | me binary | me eg== b | me n
    me s | me Y b | me a b b | me binary b | me a k O1 q | mg | mg a | mg z | mg a v | mg z v
    mg a q | mg z q | mg a q v | mg z q v k O1 | mg z k O1 | mg a k | mg a k O1 | mg a O1 k
    mg a s t c f h l v k | mg n t | mg n t T5 t | mg n T5 t | mg n T0 t | mg n T-1 t | mg n T-1
    mg n T2592001 | mg n T4102444800 | mg n Tx | mg n T | mg n T1.5 | mg n T99999999999999999999
    mg n T+5 t | mg a h | mg a u h | mg a h u v | mg a u v | mg z N30 | mg z N30 v t
    mg z N30 t v c k O1 | mg z N0 t | mg z N-1 t | mg z N-1 v | mg z t N30 | mg z N30 T90 t
    mg z T90 N30 t | mg z N30 q | mg z N30 q v k | mg z N30 R60 | mg z Nx | mg z N | mg a N30
    mg a N30 t | mg eg== b N30 k | mg eg== b N30 k v t | mg n R30 | mg n R100 | mg n R101
    mg n R200 | mg n R0 | mg n R-1 | mg n Rx | mg n R | mg n R200 T300 t | mg n T300 R200 t
    mg a R30 | mg s | mg s v | mg s v t c f | mg s R90 | mg s N30 | mg s q | mg s u
    mg s k O1 v | mg s T90 t | mg s h l | mg binary k | mg binary k v | mg YmluYXJ5 b k
    mg YmluYXJ5 b k v O1 | mg YmluYXJ5 | mg YmluYXJ5 k b v | mg eg== b k | mg eg== b | mg eg b
    mg e b | mg e=== b | mg ==== b | mg = b | mg Zm9vZ=== b k | mg Zm9v==== b k
    mg YQ==YQ== b k | mg YQ==Y b k | mg Y-Q-=-= b k
    mg Y=Q= b k | mg A=== b | mg YWI= b k | mg YWE= b k | mg YWF= b k | mg a z | mg a !
    mg a v v | mg a k O1 k | mg a M | mg a MX | mg a MXX | mg a I | mg a F1 | mg a Fx | mg a C1
    mg a Cx | mg a D1 | mg a Dx | mg a J1 | mg a Jx | mg a P | mg a L | mg a P/a/b Lc | mg a S
    mg a S5 | mg a E1 | mg a x | mg a i | mg a 1 | mg a = | mg a vvv kx qx | mg a O
    mg a Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | mg a Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    mg z Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | mg a Dx z | mg a Dx Fx | mg a Fx Dx | mg a M Nx
    mg eg Dx b | mg eg b Dx | mg eg b Fx | mg a noreply | mg noreply | mg a v noreply
    mg a s t c f h l k Oabc v u q T5 N5 R5 P L | mg a s t c f h l k Oabc v u q T5 N5 R5 P L D1
    mg a a a a a a a a a a a a a a a a a a a a a a a a a | md a | md z | md a q | md z q
    md a k | md a k O1 | md z k O1 | md a k q O1 | md z k q | md a C%CAS% | md a C1 | md a C1 q
    md a C1 k O1 | md a C0 | md z C1 | md a Cx | md a C | md a I | md a I T30 | md a T30
    md a I C%CAS% | md a I C1 | md a I q | md a I k O1 | md z I | md n I T5 | md s I | md s
    md n I T-1 | md a I Tx | md YmluYXJ5 b | md YmluYXJ5 b k | md eg== b k | md eg b
    md binary k | md YmluYXJ5 b I k O1 | md a z | md a v v | md a v t c f h l s u | md a N30
    md z N30 | md a MX | md a M | md a Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    md z Oxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | md | md a x | md a noreply
    md a s t c f h l k Oabc v u q T5 N5 R5 P L D1 | ma n | ma z | ma a | ma n v | ma n q
    ma n q v | ma z q | ma z q v | ma a q | ma n k | ma n k O1 | ma n v t c k O1 | ma z k O1
    ma z v k | ma n D5 v | ma n D0 v | ma n D18446744073709551615 v
    ma n D18446744073709551616 v | ma n D-1 v | ma n Dx | ma n D | ma n D1.5 | ma n D+1 v
    ma n MI v | ma n M+ v | ma n MD v | ma n M- v | ma n Mi | ma n MX | ma n M | ma n MII
    ma n MD D3 v | ma n MD D99 v | ma n M- D99 v t c | ma z N30 | ma z N30 v
    ma z N30 v t c k O1 | ma z N30 J5 v | ma z N30 J5 D2 v | ma z N30 J5 MD v
    ma z N0 J18446744073709551615 v | ma z N30 Jx | ma z J5 v | ma z N30 q | ma z N30 q v
    ma z N-1 v t | ma z Nx | ma z N | ma z N30 T90 t | ma z T90 N30 t | ma z t N30
    ma n N30 v t | ma n N30 J5 v | ma n T30 t | ma n t T30 | ma n T0 t | ma n T-1 | ma n Tx
    ma s v | ma s D99 v t | ma s T90 t | ma n C%CAS% | ma n C1 | ma n C1 q | ma n C1 k O1
    ma n C0 | ma n Cx | ma a C1 | ma z C1 | ma z C1 N30 | ma z C1 N30 v c | ma n D90 T30 t c v
    ma n D90 t v | ma YmluYXJ5 b k | ma bg== b k v | ma eg== b k | ma eg== b N30 k v | ma eg b
    ma n z | ma n v v | ma n s f h l u v | ma n I F1 R5 v
    ma | ma n x | ma n noreply
    ma n s t c f h l k Oabc v u q T5 N5 R5 P L D1 | ma n s t c f h l k Oabc v u q T5 N5 R5 P
""")
#: Lines of bytes that a table of words cannot hold.
ODD_LINES = [
    *(b"%b %b%b" % (verb, KEY, k) for verb in (b"mg", b"md", b"ma", b"me") for k in (b"", b"k")),
    *(b"%b %b b k" % (verb, b"YWJj" * n) for verb in (b"mg", b"md", b"me") for n in (62, 63)),
    b"mg a \x7f", b"mg a \xff", b"mg a \x01", b"mg a \t", b"mg\ta", b"mg a\tv", b"mg a\0 v",
    b"mg\0 a", b"mn\0", b"mg \xff\x01 k", b"mg Y\xffQ== b k", b"  mg   a   v  ", b"mg a v\r",
    b"mg a\rv", b"mg a v q \r", b"md \x7f k", b"\0", b"\t", b"\xff\xff", b"mg a v\n\r\nmg a k\n",
    b"mn\nmn\nmn", b"mg a O\xff\x01", b"mg a k\xff", b"ma n\x0b", b"ma n D\t1 v", b"mg a T \x0b5",
    b"mg n T\t50 t",
]  # fmt: skip
