"""The server's certificate: checked before anything is loaded, and read again when it is renewed.

uvicorn does the rest.
"""

import ssl
from pathlib import Path

from server.config import ServerConfig
from server.file_watch import changes, version_of
from server.logging import get_logger

_log = get_logger(__name__)


class TlsError(Exception):
    """The certificate cannot be used; the message is one line."""


def check_certificate(config: ServerConfig) -> None:
    """Raises TlsError. Nothing to do where no certificate is given."""
    if config.tls_certificate is None:
        if config.tls_key is not None:
            raise TlsError("--tls-key needs --tls-certificate")
        return
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config.tls_certificate, config.tls_key)


async def watch_certificate(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Let new connections have the certificate that is in the files now, for ever."""
    certificate, key = config.tls_certificate, config.tls_key
    assert certificate is not None
    paths = [Path(path) for path in (certificate, key) if path is not None]
    async for _ in changes(*paths, since=version_of(*paths)):
        try:
            # on trial first: a key that does not belong to it would spoil the context in use
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
            _load(context, certificate, key)
        except TlsError as exc:
            _log.error("the certificate stays as it was", reason=str(exc))
        else:
            _log.info("certificate read again")


def _load(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    for path in (certificate, key):
        try:
            if path is not None:
                Path(path).open("rb").close()  # OpenSSL does not say which of them it cannot read
        except OSError as exc:
            raise TlsError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        raise TlsError(
            f"the certificate {certificate} cannot be used with the key {key or certificate}: "
            f"{reason}"
        ) from exc


def _no_password() -> str:
    """OpenSSL would ask for it on the terminal."""
    raise ValueError("the key is encrypted, which is not supported")
