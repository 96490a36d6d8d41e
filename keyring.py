"""How the keys of a store, and of a kit, are opened: the one place that knows both who uses them and the ciphers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .runtimes.flower import identity
from .server import vault

if TYPE_CHECKING:  # cryptography is imported when a key is opened, not when umbel is
    from .privacy.identities import Identity
    from .privacy.vault import ModelSigner, Sealer, StorageVault


def open_vault(path: str) -> StorageVault:
    """The vault of a storage key file. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.vault import StorageVault

    return StorageVault.load(path)


def open_signer(names: str) -> ModelSigner:
    """The signer of an operator's key. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.vault import ModelSigner

    return ModelSigner.load(names)


def open_identity(kit: Path) -> Identity:
    """Who a kit's party is. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.identities import Identity

    return Identity.load(kit)


def open_sealer(kit: Path) -> Sealer:
    """What seals a client's disk. Errors: ConfigError for a file or a key that is refused."""
    from .privacy.vault import Sealer, StorageVault

    return Sealer(StorageVault.load(str(kit / "storage.jwk")))


def register() -> None:
    """Let stores open the keys that are named to them, and parties those of their kits."""
    vault.use(open_vault, open_signer)
    identity.use(open_identity, open_sealer)
