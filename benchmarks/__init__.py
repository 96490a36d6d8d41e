"""Umbel against its peers, on the same work: `make bench`."""
