"""How a container reaches the quote helper of its node: the names on which applications, pods and nodes agree."""

from __future__ import annotations

FOLDER = "/var/run/aesmd"
"""Of the helper's socket, on the node and in containers. The folder, because each helper makes a socket of its own."""
SOCKET = "aesm.socket"
"""Name of the socket there."""
VARIABLE = "SGX_AESM_ADDR"
"""Environment variable whose presence makes Intel's library ask AESM for quotes."""
RESOURCE = "sgx.confcom.dev/quote-helper"
"""Resource of a container that asks the helper: the device plugin brings it the folder and the variable for it."""
