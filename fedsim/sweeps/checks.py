"""What must hold between the sections of a sweep file: names that are named are there, and none is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fedsim import plugins
from fedsim.errors import InputError, suggestion
from fedsim.schema import Problems
from fedsim.sweeps.words import PER_IMAGE, Attacker, Protocol, Sweep
from fedsim.toml_lines import Path

_STATISTICS = ("mean", "best", "std")
_NEED_CELLS = frozenset({"table", "pictures", "plane", "lines", "labels"})


def check(sweep: Sweep, problems: Problems) -> None:
    """Note every conflict in `problems`."""
    for rule in (_names, _cells, _table, _chart, _published):
        rule(sweep, problems)


def _names(sweep: Sweep, problems: Problems) -> None:
    """What is named is there, and nothing is there twice."""
    _once([axis.name for axis in sweep.axes], ("axes",), "axes", problems)
    for position, axis in enumerate(sweep.axes):
        _once(axis.names, ("axes", position, "points"), f"points of '{axis.name}'", problems)
        for place, point in enumerate(axis.points):
            for number, template in enumerate(point.adversaries or ()):
                path: Path = ("axes", position, "points", place, "adversaries", number)
                _known(template, sweep.templates, "template", path, problems)
    by_name = {axis.name: axis for axis in sweep.axes}
    for name, scale in sweep.scales.items():
        for key, points in scale.axes.items():
            path = ("scales", name, "axes", key)
            if not _known(key, by_name, "axis", path, problems):
                continue
            for number, chosen in enumerate(points):
                _known(chosen, by_name[key].names, f"point of '{key}'", (*path, number), problems)
            if not points:
                problems.add(path, "must have at least one item")
        for key in scale.values:
            _known(key, sweep.values, "name in [values]", ("scales", name, "values", key), problems)
    if sweep.scale is not None:
        _known(sweep.scale, sweep.scales, "scale", ("sweep", "scale"), problems)


def _once(names: Iterable[str], path: Path, what: str, problems: Problems) -> None:
    names = list(names)
    for name, times in Counter(names).items():
        if times > 1:
            second = [place for place, one in enumerate(names) if one == name][1]
            problems.add((*path, second, "name"), f"{times} {what} are called '{name}'; give each a name of its own")


def _known(name: str, known: Iterable[str], what: str, path: Path, problems: Problems) -> bool:
    if name in known:
        return True
    hint = suggestion(name, known) or f" (there is no {what} at all)"
    problems.add(path, f"there is no {what} '{name}'{hint}")
    return False


def _cells(sweep: Sweep, problems: Problems) -> None:
    if sweep.experiment is None:
        wanted = [part for part in sweep.show if part in _NEED_CELLS]
        if wanted:
            problems.add(("experiment",), f"missing; the part '{wanted[0]}' of the page is made of experiments")
        for key in ("training", "axes", "templates", "values"):
            if sweep.content.get(key):
                problems.add((key,), "makes no sense without [experiment]")
    if sweep.training and sweep.experiment and "checkpoint" in sweep.experiment:
        problems.add(("experiment", "checkpoint"), "the cells start from what [training] trains; leave one of them out")
    if sweep.training is None:
        for position, axis in enumerate(sweep.axes):
            for place, point in enumerate(axis.points):
                if point.training:
                    problems.add(("axes", position, "points", place, "training"), "there is no [training] to change")
        for name, scale in sweep.scales.items():
            if scale.training:
                problems.add(("scales", name, "training"), "there is no [training] to change")


def _table(sweep: Sweep, problems: Problems) -> None:
    table, axes = sweep.table, {axis.name: axis for axis in sweep.axes}
    if table is None:
        for part in ("table", "pictures", "plane"):
            if part in sweep.show and "table" not in sweep.content:
                problems.add(("table",), f"missing; the part '{part}' of the page needs to know rows and columns")
                return
        return
    for key in ("rows", "columns"):
        value = getattr(table, key)
        if value is not None:
            _known(value, axes, "axis", ("table", key), problems)
    if table.rows == table.columns:
        problems.add(("table", "rows"), f"'{table.rows}' is across already; name another axis")
    if table.baseline is not None and table.columns in axes:
        _known(
            table.baseline, axes[table.columns].names, f"point of '{table.columns}'", ("table", "baseline"), problems
        )
    if "time_ratio" in table.training and table.baseline is None:
        problems.add(("table", "baseline"), "missing; say which column time_ratio is relative to")
    if table.training and sweep.training is None:
        problems.add(("table", "training"), "there is no [training] to tell anything of")
    _once([one.name for one in table.protocols], ("table", "protocols"), "protocols", problems)
    ids = _ids(sweep)
    several = tuple(f"{name}-" for name, plugin in ids.items() if _combines(plugin))
    _once([one.name for one in table.attackers], ("table", "attackers"), "attackers", problems)
    attackers = [one.name for one in table.attackers]
    named: dict[str, tuple[Attacker | Protocol, ...]] = {"attackers": table.attackers, "protocols": table.protocols}
    for key, entries in named.items():
        for place, one in enumerate(entries):
            for number, adversary in enumerate(one.adversaries):
                path: Path = ("table", key, place, "adversaries", number)
                if key == "protocols" and attackers:
                    _known(adversary, attackers, "attacker", path, problems)
                elif not adversary.startswith(several):
                    _known(adversary, ids, "adversary", path, problems)


def _ids(sweep: Sweep) -> dict[str, str]:
    """The adversaries that cells can have, with their plugins."""
    own = (sweep.experiment or {}).get("adversaries", [])
    entries = [item for item in own if isinstance(item, dict)] if isinstance(own, list) else []
    found = {str(item.get("id", name)): str(item.get("name")) for name, item in sweep.templates.items()}
    return found | {str(item.get("id", item.get("name"))): str(item.get("name")) for item in entries}


def _combines(plugin: str) -> bool:
    """Whether a plugin may give several answers, each as an adversary "ID-NAME" that only its run names."""
    try:
        return hasattr(plugins.load("adversaries", plugin), "combine")
    except InputError:  # told with the cells
        return False


def _chart(sweep: Sweep, problems: Problems) -> None:
    chart, axes = sweep.chart, {axis.name: axis for axis in sweep.axes}
    if chart is None:
        if "lines" in sweep.show and "chart" not in sweep.content:
            problems.add(("chart",), "missing; the part 'lines' of the page needs to know what goes over what")
        return
    for key in ("x", "lines"):
        value = getattr(chart, key)
        if value is not None:
            _known(value, axes, "axis", ("chart", key), problems)
    for point in axes[chart.x].names if chart.x in axes else ():
        try:
            float(point)
        except ValueError:
            problems.add(("chart", "x"), f"the points of '{chart.x}' must have numbers for names; '{point}' is none")
            break


def _published(sweep: Sweep, problems: Problems) -> None:
    """Published values are of rows and columns that are there. Keys that this does not know are for the page."""
    table, axes = sweep.table, {axis.name: axis for axis in sweep.axes}
    if table is None or table.columns not in axes:
        return
    columns = axes[table.columns].names
    rows = axes[table.rows].names if table.rows in axes else None
    for value, item in sweep.published.items():
        for key, below in item.items() if isinstance(item, dict) else ():
            path: Path = ("published", value, key)
            if not isinstance(below, dict):
                continue
            if value == "training":
                _columns(below, columns, path, table.columns, problems)
            elif value in PER_IMAGE and key in _STATISTICS and rows is not None:
                for row, cells in below.items():
                    if _known(row, rows, f"point of '{table.rows}'", (*path, row), problems) and isinstance(
                        cells, dict
                    ):
                        _columns(cells, columns, (*path, row), table.columns, problems)


def _columns(cells: Mapping[str, Any], columns: tuple[str, ...], path: Path, axis: str, problems: Problems) -> None:
    for column, number in cells.items():
        if _known(column, columns, f"point of '{axis}'", (*path, column), problems) and (
            isinstance(number, bool) or not isinstance(number, int | float)
        ):
            problems.add((*path, column), f"must be a number, not {number!r}")
