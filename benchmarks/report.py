"""The documentation's tables and plots: ``python -m benchmarks.report RESULTS.json ...``.

Knows the results that ``python -m benchmarks --json`` kept, of one loop or of
several. Writes ``docs/performance_tables.rst`` and ``docs/performance_*.svg``.
It must not know how they were come by, and adds no word to praise them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from . import svg
from .bars import figures
from .clients import FLOORS
from .fault_table import item
from .growth import FAMILIES, size_of
from .table import LIMITED, amount, bar_table, failures, notes, simple_table, table_of, title

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLES = "performance_tables.rst"
#: Those whose speed stands side by side in one plot.
MANY_CALLERS = ("c32", "c256", "c1000", "mix256", "burst100")
ONE_CALLER = ("seq", "get_multi100", "get100k", "get1m", "set1m", "wrk")
NO_SERVER = "loop_alone"


def colours(found: dict[str, Any]) -> dict[str, str]:
    """Returns a colour for each client, the same in all plots of a run."""
    peers = [name for name in found["about"]["clients"] if not _is_own(name)]
    given = {name: svg.PEERS[n % len(svg.PEERS)] for n, name in enumerate(peers)}
    return {
        name: svg.OURS if name.startswith("ours") else given.get(name, svg.FLOOR)
        for name in [*found["about"]["clients"], "no_cache"]
    }


def _is_own(name: str) -> bool:
    return name.startswith("ours") or name in FLOORS


# -- plots


def speed_plot(found: dict[str, Any], workloads: Sequence[str]) -> str | None:
    """Returns how many operations a second each client does, a panel for each workload."""
    colour, panels = colours(found), []
    for workload in workloads:
        rows = []
        for client in found["results"].get(workload, {}):
            ops = figures(found["results"], workload, client, "ops")
            if ops and client != NO_SERVER:
                value = median(ops)
                rows.append(
                    svg.Bar(title(found, client), value, f"{amount(value)}/s", colour[client])
                )
        if rows:
            rows.sort(key=lambda bar: -bar.value)
            panels.append((f"{workload}: {found['workloads'][workload]}", rows))
    return svg.bars("Operations a second", panels) if panels else None


def memory_plot(found: dict[str, Any]) -> str | None:
    colour, panels = colours(found), []
    for figure, name in (("plain", "bytes a call in flight"), ("connection", "an idle connection")):
        rows = []
        for client in found["results"].get("memory", {}):
            values = figures(found["results"], "memory", client, figure)
            if values:
                value = median(values)
                rows.append(svg.Bar(title(found, client), value, f"{value:.0f} B", colour[client]))
        if rows:
            panels.append((name, sorted(rows, key=lambda bar: bar.value)))
    return svg.bars("Bytes in memory", panels) if panels else None


def growth_of(found: dict[str, Any], family: str) -> dict[str, list[tuple[int, float, float]]]:
    """Returns for each client its points: the size, operations a second, CPU seconds a call."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for workload in FAMILIES[family][1]:
        for client in found["results"].get(workload.name, {}):
            ops = figures(found["results"], workload.name, client, "ops")
            cpu = figures(found["results"], workload.name, client, "cpu")
            if ops and cpu:
                point = (size_of(workload), median(ops), median(cpu))
                points.setdefault(client, []).append(point)
    return points


def growth_plot(found: dict[str, Any], family: str) -> str | None:
    """Returns operations a second over what grows; the loop alone asks no server."""
    colour = colours(found)
    lines = [
        svg.Line(title(found, client), [(x, ops) for x, ops, _ in points], colour[client])
        for client, points in growth_of(found, family).items()
        if client != NO_SERVER
    ]
    if not lines:
        return None
    what = "get_multi calls" if family == "keys" else "gets"
    about = FAMILIES[family][0]
    return svg.lines(f"{what} a second, by {about}", about, lines)


def plots(found: dict[str, Any]) -> dict[str, str]:
    """Returns the plots that a run has figures for, by the names of their files."""
    suffix = "" if found["about"]["loop"] == "asyncio" else f"_{found['about']['loop']}"
    made = {
        "concurrent": speed_plot(found, MANY_CALLERS),
        "one_caller": speed_plot(found, ONE_CALLER),
        "memory": memory_plot(found),
        **{family: growth_plot(found, family) for family in FAMILIES},
    }
    return {f"performance_{name}{suffix}.svg": text for name, text in made.items() if text}


# -- tables


def growth_table(found: dict[str, Any], family: str) -> list[str]:
    """Returns operations a second and CPU a call, a row for each size."""
    points = growth_of(found, family)
    if not points:
        return []
    rows = [[FAMILIES[family][0], *(title(found, client) for client in points)]]
    for workload in FAMILIES[family][1]:
        size, cells = size_of(workload), []
        for mine in points.values():
            ops, cpu = next(((o, c) for x, o, c in mine if x == size), (None, None))
            cells.append("-" if cpu is None else f"{amount(ops)}, {cpu * 1e6:.3g} us")
        if set(cells) != {"-"}:
            rows.append([str(size), *cells])
    return ["", f"**By {FAMILIES[family][0]}**: a second, and CPU a call", "", *simple_table(rows)]


def section(found: dict[str, Any]) -> list[str]:
    """Returns all tables of one run."""
    families = {one.name for _, workloads in FAMILIES.values() for one in workloads}
    lines = [f"**The bars, loop {found['about']['loop']}**", "", *bar_table(found)]
    for workload in found["results"]:
        if workload not in families:
            unit = "" if workload in LIMITED else " (medians; x ours: quartiles of the rounds)"
            about = found["workloads"][workload]
            lines += ["", f"**{workload}**: {about}{unit}", "", *table_of(found, workload)]
    for family in FAMILIES:
        lines += growth_table(found, family)
    lines += ["", "How it was taken:", "", *notes(found, "- ")]
    for line in failures(found):
        lines += item("- ", line.replace("`", "'").replace("*", "").replace("_", r"\_"))
    return [*lines, *(f"- {name}: skipped, {why}" for name, why in found["skipped"].items()), ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="what --json kept, a file a loop")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write (docs)")
    chosen = parser.parse_args()
    lines = [".. Made by benchmarks.report; what it is made from comes from benchmarks.", ""]
    for path in chosen.results:
        found = json.loads(path.read_text())
        lines += section(found)
        for name, text in plots(found).items():
            (chosen.docs / name).write_text(text)
            print(chosen.docs / name)
    (chosen.docs / TABLES).write_text("\n".join(lines).rstrip("\n") + "\n")
    print(chosen.docs / TABLES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
