"""A SuperLink in this process: Flower's own application, with or without Umbel's layers, called without a port."""

import asyncio
import base64

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from umbel.runtimes.flower.compat import PROTOBUF_MEDIA_TYPE, TIMESTAMP_HEADER
from umbel.runtimes.flower.link.asgi import ask


class NodeKey:
    """A node's key, and what it proves itself by."""

    def __init__(self):
        self._private = ec.generate_private_key(ec.SECP384R1())
        self.public = public_key_to_bytes(self._private.public_key())

    @property
    def proof(self):
        """A call's headers, as of now."""
        moment = now().isoformat()
        signature = base64.b64encode(sign_message(self._private, moment.encode())).decode()
        key = base64.b64encode(self.public).decode()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: key,
            TIMESTAMP_HEADER: moment,
            FLEET_HTTP_SIGNATURE_HEADER: signature,
        }


def called(app, path, request, headers):
    """Return an application's answer to one call, of a protobuf message."""
    words = {"content-type": PROTOBUF_MEDIA_TYPE, **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
        "headers": [(name.lower().encode(), value.encode()) for name, value in words.items()],
    }
    return asyncio.run(ask(app, scope, request.SerializeToString()))
