"""Encoding: meaning of a population's numbers, which column each feature is, and which class each label is.

One encoding serves all clients of a population, its validation clients and its test set. It is found over every
client's data, or given by `classes=`: never from one client's data alone, since a client that lacks a class would then
call all later ones by other numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..core.bases import Population, PopulationEncoding
from ..core.errors import ConfigError
from ..core.examples import Examples, brief, leaves
from ..core.protocols import Source
from ..core.reading.coercion import is_text, listed_rows, rows_without
from ..core.validation import require, shown

Classes = Sequence[str | int]
MOST_LISTED = 10


@runtime_checkable
class ColumnSource(Protocol):
    """A Source whose features are columns with names."""

    def columns(self) -> tuple[str, ...]:
        """Return the name of each feature, in x's order."""

    def ordered(self, columns: tuple[str, ...]) -> Source:
        """Return the same source with its features in this order."""


@runtime_checkable
class ClassSource(Protocol):
    """A Source that knows its classes by name, those without examples included."""

    def class_names(self) -> Sequence[str]:
        """Return the classes; empty where labels are numbers."""


@dataclass(frozen=True)
class Encoding(PopulationEncoding):
    """The meaning of a population's numbers.

    Parameters
    ----------
    classes
        Label k is the class `classes[k]`, and column k of labels that are a matrix; empty where labels are numbers of
        their own.
    columns
        Feature k is the column `columns[k]`; empty where features have no names.
    """

    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def read(self, source: Source, place: str = "") -> Examples:
        """Load the examples of source, its columns in the order of this encoding, its labels as numbers.

        place: where the source is, for messages. Errors: ConfigError for columns that are missing or more, and for
        labels that are none of the classes, with their rows.
        """
        place = place or shown(source)
        if self.columns and isinstance(source, ColumnSource) and (columns := source.columns()) != self.columns:
            require_columns(columns, self.columns, place)
            source = source.ordered(self.columns)
        names = declared_classes(source)
        examples = Examples.of(source.load())
        if not names or not self.classes or is_text(examples.y):
            return self.encode(examples, place)
        require(
            names == self.classes,
            f"{place} numbers the classes {listed(names)}, the population {listed(self.classes)}: "
            "give both the same classes=",
        )
        return examples

    def encode(self, examples: Examples, place: str = "the examples") -> Examples:
        """Return examples with labels of text as the numbers of their classes: int32, of y's shape.

        Labels that are numbers already stay as they are. Errors: ConfigError for a label that is none of the classes.
        """
        if not self.classes:
            return examples
        require_single(examples, place)
        labels = examples.y
        if labels is None:
            return examples
        # Of a matrix of numbers, each column is a class, or a quantity of its own.
        is_column = labels.shape[1:] in ((), (1,))
        if is_text(labels) or (is_column and _are_numbers(self.classes)):
            return examples._replace(y=class_numbers(labels, self.classes, place))
        if not is_column or labels.dtype.kind not in "iu" or not labels.size:
            return examples
        least, most = labels.min(), labels.max()
        require(
            0 <= least <= most < len(self.classes),
            f"{place} has labels from {least} to {most}, which are no numbers of the {len(self.classes)} classes "
            f"{listed(self.classes)}",
        )
        return examples

    def translated(self, population: Population) -> Population:
        """Return population with its numbers as they are in this encoding: itself where they are already."""
        encoding = encoding_of(population)
        if encoding in (self, Encoding()):
            return population
        require(
            not (encoding.classes and not self.classes),
            f"{shown(population)} has the classes {listed(encoding.classes)}, where the labels of the training "
            "population are numbers: give both labels of one kind",
        )
        if self.columns and encoding.columns:
            require_columns(encoding.columns, self.columns, shown(population))
        translated = Translated(population, encoding, self)
        if not set(encoding.classes) <= set(self.classes):
            for client in range(len(population)):  # the first label that is unknown is said now, with its row
                translated.examples(client)
        return translated


@dataclass(frozen=True, repr=False)
class Translated(Population):
    """A population whose numbers are changed from one encoding to another, client by client."""

    population: Population
    before: PopulationEncoding
    after: PopulationEncoding

    def __repr__(self) -> str:
        return f"Translated({self.population!r})"

    def __len__(self) -> int:
        return len(self.population)

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        return self.population

    def encoding(self) -> PopulationEncoding:
        """Return the encoding that its numbers have."""
        return self.after

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()

    def examples(self, client: int) -> Examples:
        """Return this client's own examples. Errors: ConfigError for a class that the other encoding lacks."""
        examples = self.population.examples(client)
        place = f"client {client}"
        if self.before.columns and self.after.columns and self.before.columns != self.after.columns:
            order = [self.before.columns.index(name) for name in self.after.columns]
            examples = examples._replace(x=examples.x[:, order])
        if self.before.classes and self.before.classes != self.after.classes:
            # Whether a matrix has a class in each cell or in each column, its numbers do not say.
            require(
                examples.y.shape[1:] in ((), (1,)),
                f"{place} has a matrix of labels for the classes {listed(self.before.classes)}, which the training "
                f"population numbers {listed(self.after.classes)}: give both the same classes=, or columns",
            )
            names = np.array(self.before.classes)[examples.y]
            examples = examples._replace(y=class_numbers(names, self.after.classes, place))
        return examples

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise ConfigError(f"{self!r} streams its clients: it has examples(client), but no rows to index")


def encoding_of(population: Population) -> PopulationEncoding:
    """Return the encoding of a population; where it knows none, one that changes nothing."""
    return population.encoding() or Encoding()


def find_encoding(parts: Iterable[tuple[str, Any]], classes: Classes | None) -> Encoding:
    """Find the one encoding of all parts: sources or Examples, each with its place for messages.

    classes: those given; None: found, in sorted order, where labels are text; empty: labels of text stay text, for a
    model that takes it. Columns are those of the first part.
    Errors: ConfigError for parts whose columns differ, that mix labels of text with numbers, or that were given
    classes of their own which differ.
    """
    columns: tuple[str, ...] = ()
    words: dict[str, None] = {}
    own_classes: dict[tuple[str, ...], str] = {}
    kinds: dict[bool, str] = {}
    for place, part in parts:
        if isinstance(part, ColumnSource) and part.columns():
            columns = columns or part.columns()
            require_columns(part.columns(), columns, place)
        if classes is not None:
            continue
        examples = part if isinstance(part, Examples) else Examples.of(part.load())
        names = declared_classes(part)
        has_text = any(is_text(array) for array in leaves(examples.y))
        kinds.setdefault(has_text or bool(names), place)
        if has_text:
            require_single(examples, place)
            words |= dict.fromkeys((*names, *class_words(examples.y, place)))
        elif names:
            own_classes.setdefault(names, place)
    listed_classes = checked_classes(classes)
    if listed_classes is None:
        listed_classes = _agreed(words, own_classes, kinds)
    return Encoding(listed_classes, columns)


def _agreed(words: Iterable[str], own_classes: dict[tuple[str, ...], str], kinds: dict[bool, str]) -> tuple[str, ...]:
    """Return the classes that parts have found, or were given.

    Errors: ConfigError where parts contradict one another.
    """
    remedy = "give the population one vocabulary, classes=(…)"
    if len(kinds) > 1:
        raise ConfigError(
            f"{kinds[True]} has labels with names, and {kinds[False]} plain numbers: use one kind of labels"
        )
    if len(own_classes) > 1:
        (names, place), (others, elsewhere) = list(own_classes.items())[:2]
        raise ConfigError(f"{place} numbers the classes {listed(names)}, {elsewhere} {listed(others)}: {remedy}")
    if not own_classes:
        names = tuple(sorted(words))
        alike = [name for name in names if name.strip() != name and name.strip() in names]
        require(not alike, f"the labels {alike[:1]} and {[name.strip() for name in alike[:1]]} differ by spaces only")
        return names
    names, place = next(iter(own_classes.items()))
    unknown = [word for word in words if word not in names]
    require(not unknown, f"label {unknown[:1]} is none of the classes {listed(names)} of {place}: {remedy}")
    return names


def declared_classes(source: Any) -> tuple[str, ...]:
    """Return the classes that a source knows by name; none where it knows of none."""
    return tuple(source.class_names()) if isinstance(source, ClassSource) else ()


def checked_classes(classes: Classes | None) -> tuple[str, ...] | None:
    """Return `classes=` as a tuple of text. Errors: ConfigError for a single text, or a name that is listed twice."""
    if classes is None:
        return None
    is_list = isinstance(classes, (Sequence, np.ndarray)) and not isinstance(classes, (str, bytes))
    require(is_list, f"expected classes={shown(classes)} to be a list of names")
    names = tuple(_word(name) for name in (classes.tolist() if isinstance(classes, np.ndarray) else classes))
    require(len(set(names)) == len(names), f"expected classes={shown(classes)} that differ, got one twice")
    return names


def class_words(labels: np.ndarray, place: str) -> list[str]:
    """Return the distinct labels as text, sorted. Errors: ConfigError for rows without a label."""
    rows = rows_without(labels.reshape(-1))
    require(not len(rows), f"{place} lacks labels ({len(rows)}), in {listed_rows(rows)}: leave those examples out")
    return sorted({_word(label) for label in np.unique(_texts(labels)).tolist()})


def class_numbers(labels: np.ndarray, classes: tuple[str, ...], place: str) -> np.ndarray:
    """Return the place in classes of each label: int32, of labels' shape.

    Labels are text, or numbers that stand for text: 3, and 3.0, for "3".
    Errors: ConfigError for a label that is none of the classes, with its row.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    distinct, places = np.unique(_texts(labels), return_inverse=True)
    codes = np.array([numbers.get(_word(label), -1) for label in distinct.tolist()], np.int32)[places.reshape(-1)]
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        rows = listed_rows(np.unique(unknown // max(labels[:1].size, 1)))
        label = _word(labels.reshape(-1)[unknown[0]])
        what = f"the label {label!r} in {rows}" if label.strip() else f"no label in {rows}"
        raise ConfigError(
            f"{place} has {what}, which is none of the {len(classes)} classes {listed(classes)}: "
            "correct it, or name every class with classes=(…)"
        )
    return codes.reshape(labels.shape)


def require_columns(columns: tuple[str, ...], expected: tuple[str, ...], place: str) -> None:
    """Raise ConfigError unless the columns are those expected, in whatever order."""
    missing = [name for name in expected if name not in columns]
    more = [name for name in columns if name not in expected]
    remedy = "name the features of all, features=(…)"
    require(not missing, f"{place} lacks the column {missing[0] if missing else ''!r} of the first client: {remedy}")
    require(not more, f"{place} has the column {more[0] if more else ''!r}, which the first client lacks: {remedy}")


def require_single(examples: Examples, place: str) -> None:
    """Raise ConfigError unless labels are one array."""
    require(
        examples.y is None or isinstance(examples.y, np.ndarray),
        f"{place} has several arrays of labels, {brief(examples.y)}, with text among them: make them numbers, each by "
        "one list of classes for all clients",
    )


def require_numbers(examples: Examples, place: str) -> None:
    """Raise ConfigError for labels of text, where no vocabulary is: it would be another one for every client."""
    require(
        not any(is_text(array) for array in leaves(examples.y)),
        f"{place} has labels of text, and what number each has must be known to all clients: give classes=(…)",
    )


def listed(classes: Sequence[str]) -> str:
    """List classes for a message."""
    more = f", … ({len(classes)} in all)" if len(classes) > MOST_LISTED else ""
    return ", ".join(classes[:MOST_LISTED]) + more


def _texts(labels: np.ndarray) -> np.ndarray:
    """Return labels in an array that sorts, whatever they are."""
    flat = labels.reshape(-1)
    return np.array([_word(label) for label in flat.tolist()], object) if labels.dtype.kind == "O" else flat


def _are_numbers(classes: tuple[str, ...]) -> bool:
    """Return whether classes are whole numbers, so that labels that are numbers are meant by value."""
    return all(name.removeprefix("-").isdigit() for name in classes)


def _word(label: Any) -> str:
    """Return a label as text."""
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        return str(int(label))
    return "" if label is None else str(label)
