"""A SuperLink's process.

    python -m umbel.runtimes.flower.link PARENT --port PORT
    python -m umbel.runtimes.flower.link PARENT --port PORT --database FILE --certificate FILE --key FILE --secret FILE

It listens on loopback and ends with the process PARENT. With the four files it takes calls over TLS, of nodes whose
keys the operator registered, and of an operator with a token whose SHA-256 is in UMBEL_CONTROL_TOKENS; without them
everybody's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..compat import start_parent_process_monitor, warn_of_another_release
from ..control import LOOPBACK
from .superlink import LinkGuard, serve
from .tokens import TokenAuthenticator


def main() -> None:
    """Run a SuperLink, with the arguments that the module describes."""
    parser = argparse.ArgumentParser(prog="umbel-link", description="A SuperLink.")
    parser.add_argument("parent", type=int, help="process id; when that process ends, so does this one")
    parser.add_argument("--port", type=int, required=True, help="port of 127.0.0.1")
    for name in ("database", "certificate", "key", "secret"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    options = parser.parse_args()
    files = (options.database, options.certificate, options.key, options.secret)
    if any(files) and not all(files):
        parser.error("--database, --certificate, --key and --secret go together")
    start_parent_process_monitor(options.parent)
    warn_of_another_release()
    guard = None
    if options.secret is not None:
        if not (secret := options.secret.read_bytes()):
            parser.error(f"{options.secret} is empty: whoever reaches the port could play runs; make the kit anew")
        guard = LinkGuard(options.database, options.certificate, options.key, secret, TokenAuthenticator())
    serve(LOOPBACK, options.port, guard)


if __name__ == "__main__":
    main()
