"""What protects clients: update transforms that go into an Experiment's Chain."""

from .clipping import Clip, clip

__all__ = ["Clip", "clip"]
