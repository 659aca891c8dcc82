"""English that messages share."""


def counted(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`, `2 micro-batches`."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{ending}"
