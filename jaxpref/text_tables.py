"""Tables of the terminal, of which nothing is cut however narrow it is."""

from rich.table import Table


def whole(table: Table) -> Table:
    """The table, once it has its columns: a word that does not fit goes on in the next line.

    By default rich cuts it, and marks the place.
    """
    for column in table.columns:
        column.overflow = "fold"
    return table
