"""An upload of a SuperNode that goes on where its SuperLink died and came back. Not public in Flower; see `compat`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .compat import ObjectPushError


class Retried(threading.local):
    """Note of whether this thread's last call had to be made again."""

    was = False

    def note(self) -> None:
        """Note that it had to."""
        self.was = True


def upload_on(make: Callable[..., Callable[[str, bytes], None]], retried: Retried) -> Callable[..., Any]:
    """Wrap Flower's maker of what uploads an object, for uploads that go on where a SuperLink died and came back.

    It takes an object once. One that it had stored, and died before it said so, it refuses when the call is made again;
    Flower then gives up the reply, for whose other objects the server waits in vain. retried: noted by every call.
    """

    def make_patient_upload(*arguments: Any) -> Callable[[str, bytes], None]:
        upload = make(*arguments)

        def upload_or_pass(identifier: str, content: bytes) -> None:
            retried.was = False
            try:
                upload(identifier, content)
            except ObjectPushError:
                if not retried.was:
                    raise

        return upload_or_pass

    return make_patient_upload
