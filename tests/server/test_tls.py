"""server/tls.py, and the real worker's HTTPS in tests/e2e/test_secured_server.py."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from server import file_watch
from server.config import ServerConfig
from server.tls import TlsError, check_certificate, watch_certificate
from tests.waiting import DEADLINE_S


def write_certificate(folder: Path, authority: trustme.CA) -> ServerConfig:
    """Certificate and key in two files."""
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return ServerConfig(tls_certificate=str(certificate), tls_key=str(key))


def test_what_is_right(tmp_path: Path) -> None:
    check_certificate(ServerConfig())
    config = write_certificate(tmp_path, trustme.CA())
    check_certificate(config)
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    check_certificate(ServerConfig(tls_certificate=str(both)))


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    authority = trustme.CA()
    write_certificate(tmp_path, authority)
    (tmp_path / "other").mkdir()
    write_certificate(tmp_path / "other", authority)
    (tmp_path / "empty.pem").touch()
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    (tmp_path / "encrypted.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    for certificate, key_name, words in (
        ("missing.pem", "key.pem", ("missing.pem cannot be read: No such file",)),
        ("cert.pem", "missing.pem", ("missing.pem cannot be read: No such file",)),
        ("cert.pem", "other/key.pem", ("cert.pem", "other/key.pem", "KEY_VALUES_MISMATCH")),
        ("cert.pem", "empty.pem", ("cannot be used",)),
        ("empty.pem", "key.pem", ("cannot be used",)),
        ("cert.pem", "encrypted.pem", ("the key is encrypted, which is not supported",)),
        ("cert.pem", None, ("cannot be used",)),
        (None, "key.pem", ("--tls-key needs --tls-certificate",)),
    ):
        config = ServerConfig(
            tls_certificate=certificate and str(tmp_path / certificate),
            tls_key=key_name and str(tmp_path / key_name),
        )
        with pytest.raises(TlsError) as caught:
            check_certificate(config)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), caught.value


async def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "_POLL_S", 0.001)
    old, new = trustme.CA(), trustme.CA()
    config = write_certificate(tmp_path, old)
    assert config.tls_certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    server = await asyncio.start_server(
        lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    port = server.sockets[0].getsockname()[1]
    watching = asyncio.create_task(watch_certificate(context, config))

    async def is_trusted(authority: trustme.CA) -> bool:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
            )
        except ssl.SSLCertVerificationError:
            return False
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        return True

    assert await is_trusted(old)
    key = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").write_bytes(b"broken")
    await asyncio.sleep(0.05)
    assert await is_trusted(old)
    (tmp_path / "key.pem").write_bytes(key)
    write_certificate(tmp_path, new)
    async with asyncio.timeout(DEADLINE_S):
        while not await is_trusted(new):
            await asyncio.sleep(0.01)
    assert not await is_trusted(old)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    server.close()
    await server.wait_closed()
