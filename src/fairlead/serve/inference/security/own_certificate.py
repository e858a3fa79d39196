"""A certificate for Fairlead's own commands, where a server ends connections without one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from fairlead.core.extras import requires
from fairlead.core.files import write_bytes

__all__ = ["write_own_certificate"]

_NAME = "fairlead on the server's machine"
_DAYS = 3650


def write_own_certificate(path: Path) -> None:
    """Write a new key with a certificate that it signs itself, for the owner alone to read.

    It opens connections of the server that trusts this very certificate, and gives no right
    beside that: who shows it must show the admin token as well.

    Raises:
        WorkspaceError: The file cannot be written.
        MissingExtraError: `cryptography` is not installed.
    """
    with requires("serve", needed_by="a server that requires certificates of its clients"):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    write_bytes(path, secret + public, mode=0o600)
