"""The certificate that a TLS server shows, for `confcom verify --connect`: nothing is sent but the handshake.

A module of its own, because TLS and an event loop are needed for nothing else in the command.
"""

from __future__ import annotations

import asyncio
import ssl

from confcom.errors import ConfigError, PlatformUnavailable

SECONDS = 10.0
"""For connection and handshake together, whatever the server does."""
_ADVICE = "Check the address, and that the server speaks TLS there."


def peer_certificate(address: str) -> bytes:
    """The DER of the certificate at HOST:PORT, [IPv6]:PORT too. Not verified: the evidence in it will be."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--connect: {address!r} is not HOST:PORT", advice="Write it as server.example.org:8443.")
    try:
        return asyncio.run(asyncio.wait_for(_shown(host, int(port)), SECONDS))
    except TimeoutError as error:
        raise PlatformUnavailable(
            f"{address} did not finish a TLS handshake in {SECONDS:g} s", advice=_ADVICE
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise PlatformUnavailable(f"no TLS connection to {address}: {reason}", advice=_ADVICE) from error


async def _shown(host: str, port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    return der
