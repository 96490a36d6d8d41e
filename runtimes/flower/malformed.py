"""What is raised for whatever came over the network and is not what was agreed on."""

from __future__ import annotations


class Malformed(Exception):
    """A record that is not what was agreed on. reason: "schema", "dtype", "shape" or "metrics"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail
