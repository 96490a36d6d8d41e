"""The files of a kit, each named once. What they hold: `deploy/kits.py`, which writes them."""

from enum import StrEnum


class KitFile(StrEnum):
    """The name of a file in a kit's folder: `folder / KitFile.ROSTER`."""

    # in every kit
    AUTHORITY = "ca.crt"  # the certificate of one authority, or of several, one after the other
    ROSTER = "roster.bin"  # the clients' public keys, signed by the operator
    SERVER_ROSTER = "server.bin"  # the server's public key, and the one that replies are sealed to, signed likewise
    OPERATOR = "operator.pub"  # the operator's public key, hex, pinned when the kit was made
    # the server's and a client's
    IDENTITY = "identity.jwk"  # the party's own key, which signs what it sends
    RUNTIME_SECRET = "runtime.secret"  # secret by which the server's own processes prove themselves to one another
    # the server's
    CERTIFICATE = "server.crt"
    CERTIFICATE_KEY = "server.key"
    RECIPIENT = "recipient.jwk"  # opens what clients seal
    PROXY = "nginx.conf"
    ENCRYPTED_PUBLIC = "homomorphic.pub"  # parameters of the ciphers, and the id of the clients' key
    # a client's
    NODE_KEY = "node.key"  # key that the client connects by
    STORAGE = "storage.jwk"  # key that the client's disk is encrypted under
    POLICY = "policy.toml"
    ENCRYPTED_SECRET = "homomorphic.key"  # parameters of the ciphers, and the secret key that clients share
    # the operator's
    AUTHORITY_KEY = "ca.key"
    NEXT_AUTHORITY_KEY = "ca.new.key"  # the next authority's key, while the authority is being replaced
    OPERATOR_KEY = "operator.jwk"  # signs rosters and model versions
    TOKEN = "control.token"
    # the settings that a party is started with
    SERVER_SETTINGS = "server.toml"
    CLIENT_SETTINGS = "client.toml"
    OPERATOR_SETTINGS = "operator.toml"
