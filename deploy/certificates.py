"""The federation's own certificate authority, what it signs, and what is wrong with what a server shows."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..core.errors import ConfigError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # what browsers accept at most: long enough to forget, short enough to be renewed by the same people
WARNING_DAYS = 14
SKEW = timedelta(minutes=5)  # how far clients' clocks may be behind
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Authority:
    """The federation's certificate authority. Its private key stays in the operator's kit."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"

    @staticmethod
    def new(name: str, days: float = AUTHORITY_DAYS, *, key: ec.EllipticCurvePrivateKey | None = None) -> Authority:
        """Make an authority, with a fresh P-256 key, or this one.

        It signs server certificates, no further authorities.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = _builder(subject, subject, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        return Authority(builder.sign(key, hashes.SHA256()), key)

    @staticmethod
    def load(certificate: Path, key: Path) -> Authority:
        """Load the authority in two PEM files, of which the first may hold others besides.

        Errors: ConfigError for files that are missing, hold something else, or do not belong together.
        """
        private = load_key(key)
        for one in load_all(certificate):
            if one.public_key() == private.public_key():
                return Authority(one, private)
        raise ConfigError(f"{certificate} and {key} do not hold a certificate and its key in PEM")

    def issued(self, certificate: x509.Certificate) -> bool:
        """Return whether this authority signed a certificate."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def issue(self, hosts: Sequence[str], days: float = SERVER_DAYS, *, begins: datetime | None = None) -> Issued:
        """Issue a server's certificate for these names and addresses, with a fresh P-256 key.

        begins: None for now; a certificate that was to be renewed, or a test, may want another time.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        builder = _builder(subject, self.certificate.subject, key.public_key(), days, begins)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(signer, critical=False)
        return Issued(pem(builder.sign(self.key, hashes.SHA256())), private_pem(key))


@dataclass(frozen=True, repr=False)
class Issued:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as PEM, not encrypted: the file's mode protects it."""
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, kind, plain)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the private key in a PEM file. Errors: ConfigError."""
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; restore the kit") from error
    except ValueError:
        raise ConfigError(f"{path} does not hold a private key in PEM") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} does not hold an elliptic-curve key")
    return private


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 in hex, by which certificates are told apart."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_pair(certificate: Path, key: Path, remedy: str) -> None:
    """Raise ConfigError for a certificate and a private key that do not belong together."""
    if load(certificate).public_key() != load_key(key).public_key():
        raise ConfigError(f"{certificate} and {key.name} do not belong together; {remedy}")


def hosts_of(path: Path) -> list[str]:
    """List the names and addresses that a certificate is for, in its order."""
    names = load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def expiry(path: Path) -> datetime:
    """Return when the certificate in a PEM file expires; of several, the first to. Errors: ConfigError."""
    return min(one.not_valid_after_utc for one in load_all(path))


def days_left(path: Path) -> float:
    """Return the days until the certificate in a PEM file expires, of several the first to; negative afterwards."""
    return (expiry(path) - datetime.now(UTC)) / timedelta(days=1)


def check_dates(path: Path, remedy: str) -> None:
    """Raise ConfigError for a certificate that has expired, or is not valid yet; of several, when all are so."""
    now = datetime.now(UTC)
    certificate, *others = load_all(path)
    if any(one.not_valid_before_utc <= now < one.not_valid_after_utc for one in others):
        return
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(
            f"certificate {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {remedy}"
        )
    if now < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc
        raise ConfigError(f"certificate {path} is not valid before {begins:%Y-%m-%d %H:%M} UTC; set this host's clock")


def probe(host: str, port: int, authority: Path, seconds: float = PROBE_SECONDS) -> None:
    """Shake hands with a server as a client does, and hang up.

    Errors: ConfigError that says what is wrong with its certificate, or that it speaks no TLS; OSError for a server
    that cannot be reached.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{authority} does not hold the federation's certificate: {error}") from error
    shake_hands(host, port, context, seconds)


def shake_hands(host: str, port: int, context: ssl.SSLContext, seconds: float = PROBE_SECONDS) -> None:
    """Shake hands with a server whose certificate has to please the context. Errors: those of `probe`."""
    where = f"the server at {host}:{port}"
    try:
        with (
            socket.create_connection((host, port), seconds) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"{where} is refused: {_reason(error, host)}") from error
    except ssl.SSLEOFError as error:  # a forwarder, whose server has not been started yet
        raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was cut in the TLS handshake") from error
    except ssl.SSLError as error:
        raise ConfigError(f"{where} does not speak TLS, and plaintext is refused ({error.reason})") from error


def _reason(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Say what OpenSSL found, with a remedy. Codes: openssl/x509_vfy.h."""
    if error.verify_code == 10:
        return "its certificate has expired; on the operator's host: umbel deploy renew"
    if error.verify_code == 9:
        return "its certificate is not valid yet; set this host's clock, or the server's"
    if error.verify_code in (62, 64):
        return f"its certificate is for another host name or address than {host}; reach it by one that it is for"
    return f"its certificate is not of this federation's authority (ca.crt): {error.verify_message}"


def host_and_port(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split "HOST", "HOST:PORT" or "[ADDRESS]:PORT" into host and port.

    Errors: ConfigError for what is no name, address or port.
    """
    host, separator, port = text.rpartition(":")
    if text.count(":") > 1 and not text.startswith("["):  # a bare IPv6 address
        host, separator, port = text, "", ""
    elif not separator:
        host, port = text, ""
    host = host.removeprefix("[").removesuffix("]")
    number = int(port) if port.isascii() and port.isdecimal() else default_port if not separator else None
    if number is None or not 0 < number < 65536 or not _is_host(host):
        raise ConfigError(f"expected {text!r} to be a host name or address, with a port as in fed.example.org:443")
    return host, number


def joined(host: str, port: int) -> str:
    """Write host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether host is this machine, and reached by nobody else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str) -> bool:
    try:
        _general_name(host)
    except ValueError:
        return False
    return True


def _general_name(host: str) -> x509.GeneralName:
    """Make a subject alternative name. Errors: ValueError for neither an address nor a host name (RFC 1123)."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        parts = host.split(".")
        is_name = 0 < len(host) <= 253 and not parts[-1].isdecimal()
        if is_name and all(_is_label(part) for part in parts):
            return x509.DNSName(host)
        raise


def _is_label(part: str) -> bool:
    return (
        0 < len(part) < 64
        and part.isascii()
        and part.replace("-", "").isalnum()
        and not part.startswith("-")
        and not part.endswith("-")
    )


def load(path: Path) -> x509.Certificate:
    """Load the first certificate in a PEM file. Errors: ConfigError."""
    return load_all(path)[0]


def load_all(path: Path) -> list[x509.Certificate]:
    """Load all certificates in a PEM file, one or more. Errors: ConfigError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"certificate {path} cannot be read: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{path} does not hold a certificate in PEM") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
    begins: datetime | None = None,
) -> x509.CertificateBuilder:
    begin = (begins or datetime.now(UTC)) - SKEW
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(int.from_bytes(os.urandom(16)) >> 1)
    builder = builder.not_valid_before(begin).not_valid_after(begin + SKEW + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(**used: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: used.get(name, False) for name in names})
