"""Quotes under Gramine: the process is the enclave, and `/dev/attestation` is its EREPORT and its quote helper in one.

Gramine's manifest switches it on with `sgx.remote_attestation = "dcap"`. Gramine asks the node's quote helper itself,
so the folder `/var/run/aesmd` must be in the pod; SGX_AESM_ADDR has no meaning there.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from msgspec import structs

from confcom.errors import ConfigError, PlatformError, PlatformUnavailable
from confcom.formats.quote import MAX_QUOTE, Quote
from confcom.platforms.interface import QuoteResult, check_sizes

FOLDER = "dev/attestation"
MAX_TYPE = 64
"""Bytes of `attestation_type`; Gramine's longest word has four."""

# The pseudo-files are the process's, not the opener's: what one thread writes, another one's quote would speak of.
_LOCK = threading.Lock()


def attestation_type(host: Path = Path("/")) -> str | None:
    """Gramine's kind of attestation (`none`, `dcap`); None outside Gramine."""
    path = host / FOLDER / "attestation_type"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TYPE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PlatformUnavailable(
            f"cannot read {path}: {error.strerror}", advice="Under Gramine every process may read it: check the image."
        ) from error
    return content.decode("ascii", "replace").strip("\0\n ")


class GramineQuoteSource:
    """A `QuoteSource` over `/dev/attestation` below `host`."""

    def __init__(self, host: Path = Path("/")) -> None:
        self._folder = host / FOLDER

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> QuoteResult:
        """A quote of this process over 64 bytes; Gramine has no way to ask for the QE's report."""
        check_sizes(report_data, nonce)
        if nonce is not None:
            raise ConfigError("Gramine cannot give the QE's report on a quote", advice="Ask without a nonce.")
        with _LOCK:
            self._write("user_report_data", report_data)
            quote = Quote.parse(self._read("quote"))
        if quote.report_data != report_data:
            raise PlatformError(
                f"{self._folder}/quote is over other report data than was written",
                retryable=True,
                advice="Something else in this process uses /dev/attestation too: let only one place do so.",
            )
        return QuoteResult(bytes(structs.replace(quote, trailing=b"")))

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        try:
            # One write and no creation: these are Gramine's pseudo-files, or they are nothing.
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unavailable(path, "write", error) from error
        if written != len(content):
            raise PlatformError(f"{path} took {written} of {len(content)} bytes")

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                content = file.read(MAX_QUOTE + 1)
        except OSError as error:
            raise _unavailable(path, "read", error) from error
        return content


def _unavailable(path: Path, verb: str, error: OSError) -> PlatformUnavailable:
    return PlatformUnavailable(
        f"cannot {verb} {path}: {error.strerror}",
        native_code=error.errno,
        advice="Gramine asks the quote helper of the node for the quote: check that /var/run/aesmd is mounted, that a "
        'helper listens there, and that the manifest has sgx.remote_attestation = "dcap".',
    )
