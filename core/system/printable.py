"""Text from elsewhere, made fit for a line of a log or a terminal."""

from __future__ import annotations

import re

MAX_TEXT = 4000  # characters

# CSI, OSC and the other escape sequences of ECMA-48, in their 7-bit and 8-bit forms.
ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\\\|\x9c|$)"
    "|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
# Control characters; line and paragraph separators; marks that reverse the order of what is shown (UAX #9);
# surrogates, which no file in UTF-8 can hold.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, longest: int = MAX_TEXT) -> str:
    r"""Return the text on one line: escape sequences are dropped, other unprintable characters shown as \n or \x07.

    Guarantees: at most `longest` characters, the last of them … where more was said.
    """
    text = ESCAPES.sub("", text[: 2 * longest])
    text = UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def is_printable(text: str) -> bool:
    """Return whether `printable` would leave a short text as it is."""
    return not UNPRINTABLE.search(text)
