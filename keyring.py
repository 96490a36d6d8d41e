"""How a store's keys are opened: the one place that knows both the store and the ciphers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .server import vault

if TYPE_CHECKING:  # cryptography is imported when a key is opened, not when umbel is
    from .privacy.vault import ModelSigner, StorageVault


def open_vault(path: str) -> StorageVault:
    """The vault of a storage key file. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.vault import StorageVault

    return StorageVault.load(path)


def open_signer(names: str) -> ModelSigner:
    """The signer of an operator's key. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.vault import ModelSigner

    return ModelSigner.load(names)


def register() -> None:
    """Let stores open the keys that are named to them."""
    vault.use(open_vault, open_signer)
