"""Secure aggregation: the server learns the sum of the clients' vectors, and nothing else about any of them."""

from ..keys.errors import SERVER, BelowThreshold, MalformedMessage, Misbehaviour, SecAggAbort
from ..keys.roster import Member, Roster
from .client import Client, RoundLog
from .encoding import DecodedSum, Encoded, FixedPoint
from .graph import Graph, Topology
from .server import BadShare, Outcome, Server
from .session import Stage, Terms
from .simulate import add, play, simulate

__all__ = [
    "SERVER",
    "BadShare",
    "BelowThreshold",
    "Client",
    "DecodedSum",
    "Encoded",
    "FixedPoint",
    "Graph",
    "MalformedMessage",
    "Member",
    "Misbehaviour",
    "Outcome",
    "Roster",
    "RoundLog",
    "SecAggAbort",
    "Server",
    "Stage",
    "Terms",
    "Topology",
    "add",
    "play",
    "simulate",
]
