"""The documentation's tables and plots: ``python -m benchmarks.report RESULTS.json ...``.

Knows the results that ``python -m benchmarks --json`` kept, of one loop or of
several. Writes ``docs/performance_tables.rst``, ``docs/performance_faster.rst``,
which has every row in which another is faster, and ``docs/performance_*.svg``;
nothing before all files were read. It must not know how they were come by, and
adds no word to praise them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from . import svg
from .bars import figures, ratios
from .clients import FLOORS
from .fault_table import item
from .growth import FAMILIES, size_of
from .table import (
    LIMITED,
    amount,
    bar_table,
    left_out,
    made_by,
    notes,
    remarks,
    simple_table,
    table_of,
    title,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLES = "performance_tables.rst"
FASTER = "performance_faster.rst"
MADE = ".. Made by benchmarks.report; what it is made from comes from benchmarks."
#: Another is told as faster from this ratio on: less cannot be told from noise.
TELLS = 1.05
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


class Plot(NamedTuple):
    """A plot: its file, what it shows in words, the workloads or the family beside which it is."""

    file: str
    alt: str
    beside: Sequence[str]
    text: str

    def lines(self) -> list[str]:
        return ["", f".. image:: {self.file}", f"   :alt: {self.alt}"]


def plots(found: dict[str, Any]) -> list[Plot]:
    """Returns the plots that a run has figures for."""
    loop = found["about"]["loop"]
    suffix = "" if loop == "asyncio" else f"_{loop}"
    several = ("concurrent", MANY_CALLERS, "Operations a second with many callers")
    one = ("one_caller", ONE_CALLER, "Operations a second with one caller, and of a handler")
    made: list[tuple[str, str, Sequence[str], str | None]] = [
        (name, f"{alt}, a bar for each client", workloads, speed_plot(found, workloads))
        for name, workloads, alt in (several, one)
    ]
    memory = "Bytes of a call in flight and of an idle connection, a bar for each client"
    made.append(("memory", memory, ("memory",), memory_plot(found)))
    for family, (about, _) in FAMILIES.items():
        alt = f"Operations a second by {about}, a line for each client"
        made.append((family, alt, (family,), growth_plot(found, family)))
    return [
        Plot(f"performance_{name}{suffix}.svg", f"{alt}; loop {loop}", beside, text)
        for name, alt, beside, text in made
        if text
    ]


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
    """Returns all tables of one run, each plot above the first of its tables."""
    families = {one.name for _, workloads in FAMILIES.values() for one in workloads}
    waiting = plots(found)

    def plotted(name: str) -> list[str]:
        some = [plot for plot in waiting if name in plot.beside]
        waiting[:] = [plot for plot in waiting if plot not in some]
        return [line for plot in some for line in plot.lines()]

    lines = item("", made_by(found, "``"))
    if bars := bar_table(found):
        lines += ["", f"**The bars, loop {found['about']['loop']}**", "", *bars]
    for workload in found["results"]:
        if workload not in families:
            unit = "" if workload in LIMITED else " (medians; x ours: quartiles of the rounds)"
            about = found["workloads"][workload]
            lines += [*plotted(workload), "", f"**{workload}**: {about}{unit}", ""]
            lines += [*table_of(found, workload), "", *item("", left_out(found, workload))]
    for family in FAMILIES:
        lines += [*plotted(family), *growth_table(found, family)]
    lines += ["", "How it was taken:", "", *notes(found, "- ")]
    for line in remarks(found):
        lines += item("- ", line.replace("`", "'").replace("*", "").replace("_", r"\_"))
    return [*lines, ""]


# -- where others are faster


def others(found: dict[str, Any], workload: str) -> list[str]:
    """Returns all but this client and the loop alone, which asks no server."""
    names = found["results"][workload]
    return [one for one in names if not one.startswith("ours") and one != NO_SERVER]


def ahead(found: dict[str, Any], workload: str, name: str, *, less: bool = False) -> list[str]:
    """Returns who is ahead of this client in a figure, the first being the most; floors last."""
    results, told = found["results"], []
    ours = figures(results, workload, "ours", name)
    for client in others(found, workload):
        theirs = figures(results, workload, client, name)
        ratio = median(ratios(theirs, ours) or [1.0])
        if ratio * TELLS < 1 if less else ratio > TELLS:
            floor = client in FLOORS
            said = f"{title(found, client)}{' (a floor)' if floor else ''} {ratio:.3g} x"
            told.append((floor, ratio if less else -ratio, said))
    return [said for _, _, said in sorted(told)]


def faster(found: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each row of each table in which another is ahead."""
    for workload in found["results"]:
        for figure, about in LIMITED.get(workload, {"ops": "operations a second"}).items():
            if told := ahead(found, workload, figure, less=workload in LIMITED):
                limited = f"{workload}, {about}"
                what = limited if workload in LIMITED else found["workloads"][workload]
                yield f"{what}: {'; '.join(told)}"


def faster_section(found: dict[str, Any]) -> list[str]:
    grown = {one.name for _, workloads in FAMILIES.values() for one in workloads}
    grows = ", as the load grows" if grown.issuperset(found["results"]) else ""
    lines = [f"**Loop {found['about']['loop']}{grows}**, x this client:", ""]
    for told in list(faster(found)) or ["nobody is."]:
        lines += item("- ", told)
    return [*lines, ""]


# -- the command


def read(path: Path) -> dict[str, Any]:
    """Reads what ``--json`` kept; ValueError in words if it is anything else."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not what --json keeps: {error}") from None
    parts = ("about", "workloads", "results", "skipped", "seconds")
    if not isinstance(found, dict) or any(part not in found for part in parts):
        raise ValueError(f"{path} is not what --json keeps")
    if not found["results"]:
        raise ValueError(f"{path} has no figures: nothing was measured")
    return found


def report(paths: Sequence[Path]) -> dict[str, str]:
    """Returns the texts that come of some results, by the names of their files."""
    files: dict[str, str] = {}
    tables, ahead_lines = [MADE, ""], [MADE, ""]
    for path in paths:
        found = read(path)
        try:
            tables += section(found)
            ahead_lines += faster_section(found)
            made = plots(found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what --json keeps: it lacks {error}") from error
        for plot in made:
            if plot.file in files:
                raise ValueError(f"{path} has figures for {plot.file}, as one before it has")
            files[plot.file] = plot.text
    for name, lines in ((TABLES, tables), (FASTER, ahead_lines)):
        text = "\n".join(lines).strip("\n") + "\n"
        files[name] = re.sub("\n{3,}", "\n\n", text)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="what --json kept, a file a loop")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write (docs)")
    chosen = parser.parse_args()
    if not chosen.docs.is_dir():
        parser.error(f"--docs {chosen.docs}: there is no such folder")
    try:
        files = report(chosen.results)
        for name, text in files.items():
            (chosen.docs / name).write_text(text)
            print(chosen.docs / name)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename} cannot be written: {error.strerror}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
