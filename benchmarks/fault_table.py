"""The results of `.faults` as a table: for a terminal, and in RST for the documentation.

Knows the results as `.faults.run` returns them. It must not know how they
were come by.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any


def as_text(found: dict[str, Any]) -> str:
    """Returns the table for a terminal; what is bad stands in stars."""
    return "\n".join([*_table(found), "", *_versions(found)])


def as_rst(found: dict[str, Any]) -> str:
    """Returns the table and its notes as a piece of RST without a heading."""
    lines = [*_table(found), ""]
    lines += _wrapped(
        f"T, the timeout, is {found['about']['deadline']} s. **Bold** is what must not happen. "
        "*Slanted* is safe but not good: the caller waits for its deadline where the failure is "
        "known at once, or gets a miss (None) where there is an error, or finds a key missing "
        "that is there. Hangs: no outcome within 3 s. A dash: the client has nothing that the "
        "fault could strike."
    )
    lines += ["", *_wrapped(_counts(found)), "", *_versions(found, "- "), ""]
    lines += ["What was done, row by row:", ""]
    for number, row in enumerate(found["faults"].values(), 1):
        lines += item(f"{number}. ", f"*{row['title']}*: {row['about']}")
    lines += ["", "What was seen besides:", ""]
    for number, fault in enumerate(found["faults"], 1):
        for client in found["about"]["clients"]:
            one = _one(found, fault, client)
            if one["detail"] and one["good"] is False:
                title = found["about"]["clients"][client]["title"]
                lines += item("- ", f"{number}, {title}: {_literal(one['detail'])}")
    return "\n".join(lines) + "\n"


def _table(found: dict[str, Any]) -> list[str]:
    """Returns the lines of a simple table of RST, which is read as well without any tool."""
    clients = found["about"]["clients"]
    rows = [["", *(client["title"] for client in clients.values())]]
    for number, (fault, row) in enumerate(found["faults"].items(), 1):
        cells = [_cell(_one(found, fault, client)) for client in clients]
        # (With a dot it would be a list of RST in each cell.)
        rows.append([f"{number} {row['title']}", *cells])
    rows.append(["good, slanted, bold", *(_tally(found, client) for client in clients)])
    # An empty first cell would continue the row before it.
    rows[0][0] = "fault"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return [line.rstrip() for line in [rule, lines[0], rule, *lines[1:], rule]]


def _cell(one: dict[str, Any]) -> str:
    mark = {False: "**", None: "*", True: ""}[one["good"]] if one["word"] != "-" else ""
    return f"{mark}{one['word']}{mark} {one['figure']}".strip()


def _one(found: dict[str, Any], fault: str, client: str) -> dict[str, Any]:
    return next(
        one for one in found["results"] if one["fault"] == fault and one["client"] == client
    )


def _tally(found: dict[str, Any], client: str) -> str:
    mine = [one for one in found["results"] if one["client"] == client and one["word"] != "-"]
    return ", ".join(str(sum(one["good"] is good for one in mine)) for good in (True, None, False))


def _counts(found: dict[str, Any]) -> str:
    """Returns the sentence that is fair to the peers: where they do as well."""
    clients = found["about"]["clients"]
    if "ours" not in clients:
        return ""
    parts = []
    for client, what in clients.items():
        if client == "ours":
            continue
        ranks = {
            number: (_rank(_one(found, fault, client)), _rank(_one(found, fault, "ours")))
            for number, fault in enumerate(found["faults"], 1)
            if _one(found, fault, client)["word"] != "-"
        }
        equal = [str(number) for number, (peer, ours) in ranks.items() if peer == ours == 2]
        better = [str(number) for number, (peer, ours) in ranks.items() if peer > ours]
        more = f" (better in {_listed(better)})" if better else ""
        parts.append(f"{what['title']} in {_listed(equal)}{more}")
    return f"As good as this client: {'; '.join(parts)}."


def _rank(one: dict[str, Any]) -> int:
    return {False: 0, None: 1, True: 2}[one["good"]]


def _listed(numbers: Sequence[str]) -> str:
    if not numbers:
        return "no row"
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"rows {', '.join(numbers[:-1])} and {numbers[-1]}"


def _versions(found: dict[str, Any], bullet: str = "") -> list[str]:
    about = found["about"]
    lines = []
    for client in about["clients"].values():
        lines += item(bullet, f"{client['title']} {client['version']}: {client['settings']}")
    lines += item(
        bullet,
        f"Python {about['python']}, Tornado {about['tornado']}, memcached {about['memcached']}, "
        f"{about['cores']} cores; the whole run took {found['seconds']} s",
    )
    return lines


def _literal(text: str) -> str:
    """Returns text that came from elsewhere so that RST leaves it alone."""
    return "``" + text.replace("`", "'").replace("\n", " ") + "``"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 95, break_long_words=False, break_on_hyphens=False)


def item(bullet: str, text: str) -> list[str]:
    indent = " " * len(bullet)
    return textwrap.wrap(
        text,
        95,
        initial_indent=bullet,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
