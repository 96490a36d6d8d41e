"""Members as a person lists them: a CSV or JSON file, read for `umbel keys roster sign`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...core.validation import require
from .files import ED25519, PublicKey, day, load_public
from .roster import Member, Roster
from .wire import TEXT_BYTES

FIELDS = ("node", "key", "owner", "expiry")
ROW = "1,11qY…,Clinic,2027-12-31"
EXAMPLE = '{"node": 1, "key": "11qY…", "owner": "Clinic", "expiry": "2027-12-31"}'


def read_members(path: Path, now: float) -> Roster:
    """Read the roster that a file lists: CSV with a header line, a JSON array of objects, or an object per line.

    Each has node (0 to 2⁶⁴ − 1), key (as `umbel keys show` prints it), owner, and expiry (a date, a time with its zone,
    or seconds since 1970). Errors: ConfigError with the number of the entry.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"members cannot be read from {path}: {getattr(error, 'strerror', None) or error}") from error
    is_table = path.suffix.lower() == ".csv"
    entries = list(csv.DictReader(text.splitlines())) if is_table else _json_entries(text, path)
    like = f"a line {','.join(FIELDS)} and lines like {ROW}" if is_table else f"entries like {EXAMPLE}"
    require(bool(entries), f"{path} lists no members; expected {like}")
    members = [_member(entry, f"{path}, entry {number}", now) for number, entry in enumerate(entries, 1)]
    return Roster(tuple(sorted(members)))


def _json_entries(text: str, path: Path) -> list[Any]:
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); expected entries like {EXAMPLE}") from None
    return list(found)


def _member(entry: Any, where: str, now: float) -> Member:
    """Read one member. Errors: ConfigError that begins with where it was."""
    if not isinstance(entry, Mapping) or set(entry) != set(FIELDS) or not all(isinstance(f, str) for f in entry):
        raise ConfigError(f"{where}: expected the fields {', '.join(FIELDS)} and no others, as in {EXAMPLE}")
    try:
        node = int(entry["node"]) if not isinstance(entry["node"], (bool, float)) else -1
    except (TypeError, ValueError):
        node = -1
    require(0 <= node < 1 << 64, f"{where}: expected node={entry['node']!r} to be an integer from 0 to 2⁶⁴ − 1")
    owner = entry["owner"]
    if not isinstance(owner, str) or not owner.isprintable() or len(owner.encode()) > TEXT_BYTES:
        raise ConfigError(f"{where}: expected owner={owner!r} to be printable text of at most {TEXT_BYTES} bytes")
    expires = _seconds(entry["expiry"], where)
    require(expires > now, f"{where}: expiry={entry['expiry']!r} is past ({day(expires)}); give a later one")
    try:
        key = load_public(str(entry["key"])).raw
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Member(node, key, owner, expires)


def _seconds(value: Any, where: str) -> int:
    """Return seconds since 1970, given as such, as a date (its beginning, UTC) or as a time."""
    try:
        if str(value).isdecimal() and not isinstance(value, bool):
            seconds = int(value)
        else:
            moment = datetime.fromisoformat(value)
            seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise ConfigError(f"{where}: expected expiry={value!r} to be a date such as 2027-12-31") from None
    return seconds


def describe(roster: Roster, now: float) -> Iterable[dict[str, Any]]:
    """Yield each member, for people and programs to read."""
    for node, key, owner, expires in roster.members:
        state = "valid" if now < expires else "expired"
        public = PublicKey(ED25519, key)
        yield {"node": node, "owner": owner, "key": public.text, "expiry": expires, "state": state}
