"""Stand in an expected answer for what is not known beforehand."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Within:
    """Any number of that range."""

    least: float
    most: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int | float) and self.least <= other <= self.most

    __hash__ = None


@dataclass(frozen=True)
class Saying:
    """Any text that holds these words."""

    words: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.words in other

    __hash__ = None


@dataclass(frozen=True)
class Holding:
    """Any object that has at least these values."""

    values: dict[str, object]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and all(other.get(name) == value for name, value in self.values.items())

    __hash__ = None
