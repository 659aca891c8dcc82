"""What became of the rows of a data set, counted on their way to token ids."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jaxpref.data.dimensions import Preferred
from jaxpref.data.encode_report import EncodeReport
from jaxpref.wording import counted

UNUSABLE = "unusable"


@dataclass
class DataReport:
    """What became of the rows of some files."""

    paths: list[str]
    kind: str = "pair"
    """Of all the groups."""
    rows: Counter = field(default_factory=Counter)
    """Rows in the files, by their own kind; `UNUSABLE` ones have none."""
    unusable: Counter = field(default_factory=Counter)
    """Rows dropped before tokenisation, by reason (only with data.on_bad_row=drop)."""
    first_unusable: dict[str, str] = field(default_factory=dict)
    """Reason -> the first such row."""
    unread: Counter = field(default_factory=Counter)
    """Columns from which nothing is read -> in how many of the usable rows they hold something."""
    read_as: Counter = field(default_factory=Counter)
    """Formats of other projects -> how many of the usable rows were read in them."""
    preferred: Preferred | None = None
    """What `data.prefer` did to the pairs."""
    converted: int = 0
    """Pairs made into groups of another kind."""
    tied: int = 0
    """Ranked rows in which scores are equal; such completions stay in the order of the row."""
    lent: int = 0
    """Groups that were lent an answer to another prompt."""
    lent_cut: int = 0
    """Such answers that were cut to fit `max_length`."""
    encoding: EncodeReport = field(default_factory=EncodeReport)

    def add(self, part: "DataReport") -> None:
        """Adds what was counted of further rows."""
        _add_counts(self, part)

    def dropped(self) -> Counter:
        """Rows and groups that are not trained on, by reason."""
        dropped = self.unusable + self.encoding.dropped
        if self.preferred and self.preferred.tied:
            dropped[f"equal in {self.preferred.name}"] = self.preferred.tied
        return dropped

    def summary(self) -> str:
        """One line: what is trained on, and what is not."""
        encoding = self.encoding
        parts = [
            f"{sum(self.rows.values()):,} rows, {encoding.groups_kept:,} groups ({self.kind})",
            dropped_with_reasons(self.dropped()),
            f"{encoding.completions_truncated:,} completions and {encoding.prompts_truncated:,} "
            "prompts cut",
        ]
        return "; ".join([*parts, *self._reading()])

    def _reading(self) -> list[str]:
        """How rows were read, where that is not plain."""
        return [
            f"{what}: " + ", ".join(f"{name} ({counted(count, 'row')})" for name, count in counts)
            for what, counts in (
                ("read as", sorted(self.read_as.items())),
                ("columns not read", sorted(self.unread.items())),
            )
            if counts
        ]

    def __repr__(self) -> str:
        return f"<DataReport {self.summary()}>"

    def __str__(self) -> str:
        lines = [", ".join(self.paths), f"kind of groups: {self.kind}; {rows_by_kind(self.rows)}"]
        lines += self._reading()
        for reason, count in sorted(self.unusable.items()):
            lines.append(f"{count} dropped: {reason}")
        if self.preferred:
            lines.append(str(self.preferred))
        if self.converted:
            into = "their chosen answers" if self.kind == "single" else "two judged answers each"
            lines.append(f"{self.converted} pairs made into {into}")
        if self.tied:
            lines.append(f"{self.tied} ranked rows with equal scores, which stay in their order")
        lines.append(str(self.encoding))
        if self.lent:
            cut = f"({self.lent_cut} of these cut)"
            lines.append(f"{self.lent} groups lent an answer to another prompt {cut}")
        return "\n".join(lines)


def rows_by_kind(rows: Counter) -> str:
    """`18 rows (pair), 1 row (judged)`."""
    return ", ".join(f"{counted(count, 'row')} ({kind})" for kind, count in sorted(rows.items()))


def dropped_with_reasons(dropped: Counter) -> str:
    """How many in all, and why.

    Args:
        dropped: by reason.
    """
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items()))
    return f"{dropped.total():,} dropped" + (f" ({reasons})" if reasons else "")


def _add_counts(whole: Any, part: Any) -> None:
    """Numbers and counters are added up; of examples the first stays."""
    for field_ in dataclasses.fields(whole):
        mine, theirs = getattr(whole, field_.name), getattr(part, field_.name)
        if isinstance(mine, Counter):
            mine.update(theirs)
        elif isinstance(mine, dict):
            setattr(whole, field_.name, theirs | mine)
        elif isinstance(mine, int):
            setattr(whole, field_.name, mine + theirs)
        elif dataclasses.is_dataclass(mine):
            _add_counts(mine, theirs)
