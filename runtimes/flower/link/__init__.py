"""A SuperLink as Umbel runs it: Flower's own application, with layers around it.

Each layer is an ASGI application that knows a path or three and the protobuf messages that pass there, and none of
Flower's insides. `superlink` puts them together; `python -m umbel.runtimes.flower.link` runs one.
"""
