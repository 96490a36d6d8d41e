"""Shakespeare's plays, a client per speaker, to predict the next character."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.validation import require, require_count
from ..values import fields_only, once
from .named import Split, in_folder, not_found


@dataclass(frozen=True)
class Shakespeare:
    """The next character at each position of a speaker's lines, as in McMahan et al. 2017, section 3.

    Parameters
    ----------
    split
        A speaker's first 80 % of lines are "train", the rest, one line at least, "test".
    sequence_length
        Characters per example; a shorter rest at the end of a speaker's text is dropped.
    min_lines
        Speakers with fewer lines are dropped, as are those without a whole sequence in both splits: so the two splits
        have the same speakers, and `ByKey` gives them the same numbers. x: int32 of shape (n, sequence_length), places
        in `vocabulary` from 1, with 0 for any other character; y: the same, one character later. From shakespeare.txt
        in the folder $UMBEL_DATA: `Speaker:` on a line of its own before each speech, an empty line after it. Without
        play titles, speakers of one name are one client, unlike in the paper.

    Raises
    ------
    ConfigError
        For a missing file, or one without such speakers.
    """

    # The 86 characters of TensorFlow Federated's Shakespeare, in ASCII order.
    vocabulary: ClassVar[str] = (
        "\n\r !\"#$%&'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"
    )
    vocabulary_size: ClassVar[int] = len(vocabulary) + 1  # number of codes, 0 included, the unknown character

    split: Split = "train"
    sequence_length: int = 80
    min_lines: int = 2

    def __post_init__(self) -> None:
        require(self.split in ("train", "test"), f"expected split={self.split!r} in train, test")
        require_count("sequence_length", self.sequence_length)
        require_count("min_lines", self.min_lines, at_least=2)

    __getstate__ = fields_only

    @property
    def path(self) -> Path | None:
        """Path where the file is looked for; None without $UMBEL_DATA."""
        return in_folder("shakespeare.txt")

    def load(self) -> Examples:
        """Return the sequences, speaker after speaker."""
        return self._sequences()[0]

    def groups(self) -> np.ndarray:
        """Return the speaker of each sequence."""
        return self._sequences()[1]

    @once
    def _sequences(self) -> tuple[Examples, np.ndarray]:
        if self.path is None or not self.path.is_file():
            raise not_found("shakespeare.txt", "`Speaker:` on a line before each speech")
        try:
            text = self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path} does not read as text ({error}): restore it") from error
        inputs, targets, speakers = [], [], []
        for speaker, lines in sorted(_lines_by_speaker(text).items()):
            if len(lines) < self.min_lines:
                continue
            kept = max(min(round(0.8 * len(lines)), len(lines) - 1), 1)
            halves = {"train": self._cut(lines[:kept]), "test": self._cut(lines[kept:])}
            if min(len(x) for x, _ in halves.values()) == 0:
                continue
            x, y = halves[self.split]
            inputs.append(x)
            targets.append(y)
            speakers.append(np.repeat(speaker, len(x)))
        require(bool(inputs), f"{self.path} has no speaker with {self.min_lines} lines or more: restore it")
        return Examples(np.concatenate(inputs), np.concatenate(targets)), np.concatenate(speakers)

    def _cut(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cut one speaker's lines into x and y, both of shape (n, sequence_length)."""
        codes = encode("\n".join(lines))
        count = max(len(codes) - 1, 0) // self.sequence_length
        length = count * self.sequence_length
        shape = (count, self.sequence_length)
        return codes[:length].reshape(shape), codes[1 : length + 1].reshape(shape)


_CODES = {character: place for place, character in enumerate(Shakespeare.vocabulary, start=1)}


def encode(text: str) -> np.ndarray:
    """Return each character's place in the vocabulary from 1, or 0: int32, shape (len(text),)."""
    return np.fromiter((_CODES.get(character, 0) for character in text), np.int32, len(text))


def decode(codes: np.ndarray) -> str:
    """Return the text of codes; an unknown character as �."""
    characters = "\ufffd" + Shakespeare.vocabulary
    return "".join(characters[code] for code in codes)


def _lines_by_speaker(text: str) -> dict[str, list[str]]:
    """Collect every speaker's lines, in order. A speech is a paragraph whose first line ends with a colon."""
    spoken: dict[str, list[str]] = {}
    for paragraph in text.split("\n\n"):
        speaker, *lines = paragraph.strip("\n").split("\n")
        if speaker.endswith(":"):
            spoken.setdefault(speaker[:-1], []).extend(lines)
    return spoken
