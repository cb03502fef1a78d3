"""What a look at image data found: what is wrong, what was changed, all of it counted and named."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lowland.trainers.data.images.decode import Reason
from lowland.trainers.errors import DataError

SHOWN = 5
"""Rows that a message names; the rest is counted."""


@dataclass
class Findings:
    """Of one path."""

    path: str
    rows: int
    """That were looked at."""
    bad: dict[int, tuple[Reason | str, str]] = field(default_factory=dict)
    """By row, the reason in a few words and the message, with file and row."""
    converted: Counter[str] = field(default_factory=Counter)
    """Images of other colour modes that are used, by mode."""
    resized: int = 0
    """Images of another size than the network sees."""

    def mark(self, row: int, reason: Reason | str, place: str, detail: str) -> None:
        """Notes that a row cannot be used; the first thing found counts."""
        self.bad.setdefault(row, (reason, f"{place}: {reason}{f' ({detail})' if detail else ''}"))

    def require_none(self) -> None:
        """Ends the training if a row cannot be used.

        Raises:
            DataError: naming the first rows and counting all.
        """
        if self.bad:
            named = "; ".join(self.bad_rows()[:SHOWN])
            raise DataError(
                f"{self.path}: {len(self.bad)} of {self.rows} rows cannot be used ({self._counted()}): {named}; "
                "correct them, or leave them out with data.bad_rows: skip"
            )

    def reasons(self) -> Mapping[str, int]:
        """How many rows are bad, by reason."""
        return dict(sorted(Counter(reason for reason, _ in self.bad.values()).items()))

    def bad_rows(self) -> list[str]:
        """Every row that cannot be used, with its file and what is wrong."""
        return [text for _, (_, text) in sorted(self.bad.items())]

    def lines(self) -> Iterator[str]:
        """What the user is told."""
        if self.bad:
            named = "; ".join(self.bad_rows()[:SHOWN])
            yield f"{self.path}: {len(self.bad)} of {self.rows} rows left out ({self._counted()}): {named}"
        if self.converted:
            modes = ", ".join(f"{count} {kind}" for kind, count in sorted(self.converted.items()))
            yield f"{self.path}: images of other colour modes converted: {modes}"

    def metrics(self, prefix: str) -> dict[str, float]:
        """Counts by name."""
        found = {f"{prefix}/rows": float(self.rows), f"{prefix}/bad_rows": float(len(self.bad))}
        found |= {f"{prefix}/bad/{name.replace(' ', '_')}": float(count) for name, count in self.reasons().items()}
        found |= {f"{prefix}/converted/{kind.replace(' ', '_')}": float(n) for kind, n in self.converted.items()}
        return found | {f"{prefix}/resized": float(self.resized)}

    def _counted(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
