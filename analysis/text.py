"""Numbers and tables as text; tables are aligned, and valid Markdown."""

import numpy as np
import pandas as pd


def number(value: float, form: str, missing: str = "-") -> str:
    """The number in a format, `missing` for NaN, `inf` for infinity."""
    return missing if np.isnan(value) else "inf" if np.isinf(value) else f"{value:{form}}"


def with_interval(value: float, low: float, high: float) -> str:
    """A ratio and both ends of its interval, with two decimals; `-` for NaN."""
    ends = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return f"{number(value, '.2f')}{ends}"


def markdown(table: pd.DataFrame) -> str:
    """The table with its columns aligned; the index is not shown. Cells are shown as they are: format them first."""
    cells = [[str(name) for name in table], *table.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells)


def formatted(table: pd.DataFrame, **forms: str) -> str:
    """The table as Markdown, its floating-point columns with three decimals or as `forms` say by name."""
    cells = {
        name: [number(value, forms.get(str(name), ".3f")) for value in column] if column.dtype == float else column
        for name, column in table.items()
    }
    return markdown(pd.DataFrame(cells))
