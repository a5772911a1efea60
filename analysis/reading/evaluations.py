"""The rows of many eval_measurements.csv as one table."""

import csv
import io

import pandas as pd

from analysis.reading.files import MEASUREMENTS, Skipped

_TIME = ("score", "accumulated_submission_time")
HALF_WRITTEN = "half-written last line"
# Said of rows that count all the same.
WHOLE = "a last line that no newline ends, but whole"
CLOCK = "an evaluation at an earlier score (seconds) than the one before: was the clock set back at a resume?"
KEPT = frozenset({WHOLE, CLOCK})


class Table:
    """Collects csv texts, and parses those with the same header at once: thousands of small reads are slow.

    Attributes:
        columns: for each run the columns that its file has.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}  # run and number of each line in its file
        self.columns: list[frozenset[str]] = []

    def add(self, run: int, text: str) -> tuple[int, list[str]]:
        """Take the text of a run. Returns the number of its evaluations, and what was left out of it."""
        complaints = []
        *lines, last = (_unquoted(text) if '"' in text else text).removeprefix("\ufeff").split("\n")
        rows: dict[str, list[str]] = {}
        places: dict[str, list[tuple[int, int]]] = {}
        header = None
        for number, line in enumerate(line.rstrip("\r") for line in lines):
            if not line:
                continue
            if not line[0].isdigit() and "global_step" in line.split(","):
                header = line  # again after a preemption, perhaps with other columns
                rows.setdefault(header, [])
                places.setdefault(header, [])
            elif header is None:
                return 0, [f"no header with global_step: {line[:40]!r}"]
            elif line.count(",") != header.count(","):
                complaints.append("a line with too few or too many fields")
            else:
                rows[header].append(line)
                places[header].append((run, number))
        if header is not None and (last := last.rstrip("\r")):
            whole = _is_whole(last, header, rows[header])
            complaints.append(WHOLE if whole else HALF_WRITTEN)
            rows[header] += [last] * whole
            places[header] += [(run, len(lines))] * whole
        count = sum(map(len, rows.values()))
        if not count:
            return 0, [*complaints, "no evaluation in it"]
        for header, mine in rows.items():
            self._lines.setdefault(header, []).extend(mine)
            self._places.setdefault(header, []).extend(places[header])
        self.columns.append(frozenset(name for header, mine in rows.items() if mine for name in header.split(",")))
        return count, complaints

    def evaluations(self, folders: pd.Series) -> tuple[pd.DataFrame, Skipped]:
        """All rows, and what was left out of them. `folders` are those of the runs, to name them."""
        tables = []
        for header, lines in self._lines.items():
            table = pd.read_csv(io.StringIO("\n".join([header, *lines])))
            broken = table.select_dtypes(exclude="number").columns
            table[broken] = table[broken].apply(pd.to_numeric, errors="coerce")
            if "score" not in table and "accumulated_submission_time" in table:
                table["score"] = table["accumulated_submission_time"]
            # Without the column the run is refused later, in a line that names it.
            no_time = ~table["score"].between(0, float("inf"), inclusive="neither") if "score" in table else False
            run, line = zip(*self._places[header])
            tables.append(table.assign(run=run, line=line, no_time=no_time))
        # As they stand in the files, where columns may change and change back.
        rows = pd.concat(tables, ignore_index=True).sort_values(["run", "line"], ignore_index=True)
        skipped: Skipped = []
        # A row is superseded when a later one of its run is at the same step or before it.
        countable = rows["global_step"].between(0, float("inf"), inclusive="left")
        later = rows["global_step"].where(countable, float("inf"))[::-1].groupby(rows["run"][::-1]).cummin()[::-1]
        following = later.groupby(rows["run"]).shift(-1)
        for reason, bad in {
            "a line without a step number": ~countable,
            "an evaluation done again after a preemption": following <= rows["global_step"],
            "an evaluation whose score (seconds) is no positive number": rows["no_time"],
        }.items():
            bad = bad.reindex(rows.index)
            skipped += [(f"{folders[run]}/{MEASUREMENTS}", reason) for run in rows.loc[bad, "run"]]
            rows = rows[~bad]
        if "score" in rows:
            back = rows.groupby("run")["score"].diff() < 0
            skipped += [(f"{folders[run]}/{MEASUREMENTS}", CLOCK) for run in rows.loc[back, "run"]]
        return rows.drop(columns=["no_time", "line"]).reset_index(drop=True), skipped


def _unquoted(text: str) -> str:
    """The text without quotes; a comma inside them becomes a semicolon."""
    rows = csv.reader(io.StringIO(text))
    plain = "\n".join(",".join(field.replace(",", ";") for field in row) for row in rows)
    return plain + "\n" * text.endswith("\n")


def _is_whole(line: str, header: str, above: list[str]) -> bool:
    """Whether a line that no newline ends has all its fields, and the last is not one that matters and may be cut.

    Official files end with num_examples, as a rule, which never changes and decides nothing. A metric or a time in
    that place counts only if it is the same as in the row above.
    """
    if line.count(",") != header.count(","):
        return False
    name = header.rsplit(",", 1)[-1]
    decides = name in ("global_step", *_TIME) or (name.startswith("validation/") and not name.endswith("num_examples"))
    return not decides or (bool(above) and above[-1].rsplit(",", 1)[-1] == line.rsplit(",", 1)[-1])
