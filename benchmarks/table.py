"""The results as text: for a terminal, and in RST for the documentation.

Knows results as `.__main__` keeps them in JSON, and the bars. It must not
know how they were come by.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .bars import Judged, figures, judged, quartiles, ratios
from .fault_table import item

#: What else is measured of a client, each with the title of its column.
LIMITED = {
    "stall": {"all_back_ms": "all back, ms", "timers": "timers at most", "lag_ms": "loop lag, ms"},
    "memory": {
        "plain": "a call",
        "new_keys": "key not known",
        "callback": "callback",
        "own_timeout": "timeout=",
        "default": "default=",
        "budget": "budget",
        "tombstone": "tombstone",
        "connection": "idle connection",
        "used_connection": "used and idle",
    },
}


def simple_table(rows: list[list[str]]) -> list[str]:
    """Returns a simple table of RST, the first row being its head."""
    rows = [[cell or ".." if not number else cell for number, cell in enumerate(r)] for r in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return [line.rstrip() for line in [rule, lines[0], rule, *lines[1:], rule]]


def amount(value: float | None, unit: str = "") -> str:
    """Returns a number with three digits that tell."""
    if value is None:
        return "-"
    for bound, sign in ((1e6, " M"), (1e4, " k")):
        if value >= bound:
            return f"{value / (1e6 if sign == ' M' else 1e3):.3g}{sign}{unit}"
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + (f" {unit}" if unit else "")


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def spread(values: Sequence[float]) -> str:
    """Returns a median and its quartiles."""
    if not values:
        return "-"
    low, high = quartiles(values)
    return f"{median(values):.3g} ({low:.3g}..{high:.3g})"


def title(found: dict[str, Any], client: str) -> str:
    return str(found["about"]["clients"].get(client, {}).get("title", client))


def speed_table(found: dict[str, Any], workload: str) -> list[str]:
    """Returns the rows of one workload, a client each; ``x ours`` is taken round by round."""
    results = found["results"]
    ours = figures(results, workload, "ours", "ops")
    rows = [["client", "per second", "x ours", "p50", "p99", "CPU a call"]]
    for client, one in results[workload].items():
        if one["error"]:
            rows.append([title(found, client), "failed", "", "", "", ""])
            continue
        ops = figures(results, workload, client, "ops")
        latencies = [figures(results, workload, client, name) for name in ("p50", "p99", "cpu")]
        rows.append(
            [
                title(found, client),
                amount(median(ops)) if ops else "-",
                spread(ratios(ops, ours)),
                *(micro(median(times)) if times else "-" for times in latencies[:2]),
                f"{median(latencies[2]) * 1e6:.3g} us" if latencies[2] else "-",
            ]
        )
    return simple_table(rows)


def limited_table(found: dict[str, Any], workload: str) -> list[str]:
    columns = LIMITED[workload]
    rows = [["client", *columns.values()]]
    for client, one in found["results"][workload].items():
        cells = [figures(found["results"], workload, client, name) for name in columns]
        rows.append(
            [title(found, client)]
            + (["failed"] + [""] * (len(columns) - 1) if one["error"] else [*map(middle, cells)])
        )
    return simple_table(rows)


def middle(values: Sequence[float]) -> str:
    return amount(median(values)) if values else "-"


def bar_table(found: dict[str, Any]) -> list[str]:
    """Returns each bar with its median, quartiles, and whether it is met."""
    rows = [["workload", "bar", "median", "quartiles", "met"]]
    for one in judged(found["results"], found["about"]["loop"]):
        rows.append([one.bar.workload, one.bar.text, *_verdict(one)])
    return simple_table(rows) if len(rows) > 1 else []


def _verdict(one: Judged) -> list[str]:
    if one.measured is None or one.low is None or one.high is None:
        return ["-", "-", "not measured"]
    quarter = f"{one.low:.3g}..{one.high:.3g}"
    return [f"{one.measured:.3g}", quarter, "yes" if one.met else "NO"]


def table_of(found: dict[str, Any], workload: str) -> list[str]:
    return (limited_table if workload in LIMITED else speed_table)(found, workload)


def failures(found: dict[str, Any]) -> list[str]:
    """Returns a line for each client that failed or was wrong."""
    return [
        f"{workload}: {title(found, client)} {'is WRONG' if one['wrong'] else 'failed'}: "
        f"{one['error']}"
        for workload, clients in found["results"].items()
        for client, one in clients.items()
        if one["error"]
    ]


def remarks(found: dict[str, Any]) -> list[str]:
    """Returns a line for whatever is not as it was asked for: failures, second tries, the end."""
    lines = failures(found)
    for workload, clients in found["results"].items():
        for client, one in clients.items():
            for why in one.get("retried", ()):
                lines.append(
                    f"{workload}: {title(found, client)} was made ready a second time: {why}"
                )
    lines += [f"{name}: skipped, {why}" for name, why in found["skipped"].items()]
    if missing := found["about"].get("not_installed"):
        lines.append(f"not installed, left out: {', '.join(missing)}")
    if found.get("stopped"):
        lines.append(f"this run did not end by itself: {found['stopped']}")
    return lines


def left_out(found: dict[str, Any], workload: str) -> str:
    """Returns who is not in a table, and why, in one line; "" if all are."""
    reasons: dict[str, list[str]] = {}
    for client, why in found.get("left_out", {}).get(workload, {}).items():
        reasons.setdefault(why, []).append(title(found, client))
    said = [f"{', '.join(clients)} ({why})" for why, clients in reasons.items()]
    return f"Not among them: {'; '.join(said)}." if said else ""


def notes(found: dict[str, Any], bullet: str = "") -> list[str]:
    """Returns what was measured with what settings, and on what."""
    about, lines = found["about"], []
    for client in about["clients"].values():
        name = f"{client['title']} {client['version']}".rstrip()
        lines += item(bullet, f"{name}: {client['settings']}")
    pinned = "each on its own core" if about["pinned"] else "not kept on cores"
    cpu = f" ({about['cpu']})" if about.get("cpu") else ""
    lines += item(
        bullet,
        f"Python {about['python']}, Tornado {about['tornado']}, loop {about['loop']}, memcached "
        f"{about['memcached']} with one thread, {about['cores']} cores{cpu}, client and server "
        f"{pinned}; {about['rounds']} rounds of about {about['seconds']:g} s in turn; the run took "
        f"{found['seconds']} s",
    )
    return lines


def made_by(found: dict[str, Any], quote: str = "") -> str:
    """Returns the command, the commit, the moment and how busy the machine was; "" if not kept."""
    about = found["about"]
    if not about.get("command"):
        return ""
    commit = f"at commit {about['commit']}" if about.get("commit") else "at no known commit"
    said = f"Made by {quote}{about['command']}{quote} {commit}, {about['date']}"
    if about.get("load_begin") is not None:
        said += f", load average {about['load_begin']} at its begin, {about['load_end']} at its end"
    return said + "."


def as_text(found: dict[str, Any]) -> str:
    """Returns all tables for a terminal."""
    lines: list[str] = []
    for workload, clients in found["results"].items():
        lines.append(f"{workload}: {found['workloads'][workload]}")
        lines += table_of(found, workload) if clients else ["none of the clients can do this"]
        lines += [*item("", left_out(found, workload)), ""]
    bars = bar_table(found)
    lines += [f"bars, on {found['about']['loop']}:", *bars, ""] if bars else []
    return "\n".join([*lines, *remarks(found), *notes(found), *item("", made_by(found))])
