"""What Python needs for a quote at least: accept, receive, sign, send, close, with no peers, limits, deadlines or log.

Usage: aesm_bare.py SOCKET ANSWER-SIZE NANOSECONDS, like its C neighbours; it signs instead of spinning.
"""

from __future__ import annotations

import gc
import socket
import sys

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

SIGNATURE = 72
"""Bytes of the longest, in DER."""


def main() -> None:
    """Serve until killed."""
    key, algorithm = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(SHA256())
    size = int(sys.argv[2]) - 4
    answer = size.to_bytes(4, "little") + bytes(size - SIGNATURE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(4096)
        print("ready", flush=True)
        gc.freeze()
        while True:
            client, _ = listener.accept()
            request = client.recv(16384)
            if request:  # else a probe
                client.send(answer + key.sign(request, algorithm).ljust(SIGNATURE, b"\0"))
            client.close()


main()
