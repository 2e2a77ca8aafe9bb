"""The protocol of the sample, without sockets and without evidence: who says what, and what follows from it.

    initiator                                              responder
    HELLO     nonce  ----------------------------------->
              <-----------------------------------  nonce      HELLO
    EVIDENCE  public key, quote  ----------------------->   verifies, then
              <-----------------------  public key, quote   EVIDENCE
    verifies, then
    MESSAGE   encrypted  ------------------------------->
              <-------------------------------  encrypted   MESSAGE

Each quote carries, as its report data,

    SHA-256("confcom sample evidence 1" ‖ role ‖ nonce of the other ‖ own public key ‖ transcript) ‖ 32 zero bytes

where `transcript` is the SHA-256 over everything said before. So a quote is

- fresh: the other's nonce is in it, a recorded quote does not fit;
- about this key: only who has the private key can read what is encrypted later;
- about this conversation and this role: it cannot be forwarded to a third party, nor replayed to its maker.

The keys come from X25519, with the transcript in the derivation: two sides that have not heard the same words get
different keys. All parts have fixed lengths or stand behind their length, so no two conversations have one transcript.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confcom import FormatError, TargetInfo, VerificationError
from confcom.errors import RemoteProtocolError

PROTOCOL = b"confcom sample 1"
EVIDENCE_DOMAIN = b"confcom sample evidence 1"
KEYS_DOMAIN = b"confcom sample keys 1"
NONCE_SIZE = 32
PUBLIC_KEY_SIZE = 32
HELLO_SIZE = 562

NO_TARGET = TargetInfo.parse(bytes(512))
"""Remote attestation has no reports between the peers, so the field is zero."""


class Role(IntEnum):
    """Who speaks first."""

    INITIATOR = 1
    RESPONDER = 2

    @property
    def other(self) -> Role:
        """The peer's role."""
        return Role.RESPONDER if self is Role.INITIATOR else Role.INITIATOR


class Kind(IntEnum):
    """What proves who one is: a quote, or between neighbours on one machine a report."""

    REMOTE = 1
    LOCAL = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame, 562 bytes: protocol (16), role (1), kind (1), nonce (32), target info for reports (512)."""

    role: Role
    kind: Kind
    nonce: bytes
    target_info: TargetInfo

    def __bytes__(self) -> bytes:
        return PROTOCOL + bytes((self.role, self.kind)) + self.nonce + bytes(self.target_info)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a hello; `RemoteProtocolError` for another protocol, `FormatError` for a wrong size."""
        if data[:16] != PROTOCOL:
            raise RemoteProtocolError("the peer speaks another protocol")
        if len(data) != HELLO_SIZE:
            raise FormatError(f"expected {HELLO_SIZE} bytes, found {len(data)}", structure="Hello", field="")
        try:
            role, kind = Role(data[16]), Kind(data[17])
        except ValueError as error:
            raise RemoteProtocolError(f"the peer's hello: {error}") from error
        return cls(role, kind, data[18:50], TargetInfo.parse(data[50:]))


class Handshake:
    """One side of one conversation: feed it everything that was said, in the order in which it was said."""

    def __init__(self, mine: Hello) -> None:
        self.mine = mine
        self._role = mine.role
        self._private_key = X25519PrivateKey.generate()
        self._transcript = hashlib.sha256(PROTOCOL)
        self._peer_nonce = b""

    @property
    def public_key(self) -> bytes:
        """Our key for this conversation alone, 32 bytes."""
        return self._private_key.public_key().public_bytes_raw()

    def hear_hello(self, payload: bytes) -> Hello:
        """Take the peer's hello; it must be of the other role, of our kind, and have a nonce of its own."""
        theirs = Hello.parse(payload)
        if theirs.role != self._role.other:
            raise RemoteProtocolError("the peer claims our own role")
        if theirs.kind != self.mine.kind:
            raise RemoteProtocolError("one side wants local attestation, the other remote attestation")
        if hmac.compare_digest(theirs.nonce, self.mine.nonce):
            raise RemoteProtocolError("the peer sent our own nonce back")
        self._peer_nonce = theirs.nonce
        for hello in (self.mine, theirs) if self._role is Role.INITIATOR else (theirs, self.mine):
            self._add(bytes(hello))
        return theirs

    def evidence_payload(self, evidence: bytes) -> bytes:
        """Our frame EVIDENCE; from here on it belongs to the transcript."""
        payload = self.public_key + evidence
        self._add(payload)
        return payload

    def report_data(self) -> bytes:
        """What our evidence must be over, 64 bytes. To be asked for directly before the evidence is made."""
        return self._report_data(self._role, self._peer_nonce, self.public_key)

    def peer_report_data(self, peer_public_key: bytes) -> bytes:
        """What the peer's evidence must be over, given the key that it sent."""
        return self._report_data(self._role.other, self.mine.nonce, peer_public_key)

    def hear_evidence(self, payload: bytes) -> None:
        """Add the peer's frame EVIDENCE to the transcript, after its report data has been checked."""
        self._add(payload)

    def keys(self, peer_public_key: bytes) -> SecureChannel:
        """The encrypted channel; both sides must have heard the same transcript and hold their private keys."""
        try:
            shared = self._private_key.exchange(X25519PublicKey.from_public_bytes(peer_public_key))
        except ValueError as error:
            raise VerificationError("the peer's public key is not usable", step="key-exchange") from error
        transcript = self._transcript.digest()
        material = HKDF(SHA256(), 64, salt=transcript, info=KEYS_DOMAIN).derive(shared)
        keys = {Role.INITIATOR: material[:32], Role.RESPONDER: material[32:]}
        return SecureChannel(keys[self._role], keys[self._role.other], transcript)

    def _report_data(self, role: Role, nonce_of_the_other: bytes, public_key: bytes) -> bytes:
        said = EVIDENCE_DOMAIN + bytes([role]) + nonce_of_the_other + public_key + self._transcript.digest()
        return hashlib.sha256(said).digest() + bytes(32)

    def _add(self, payload: bytes) -> None:
        self._transcript.update(len(payload).to_bytes(8, "big") + payload)


def split_evidence(payload: bytes) -> tuple[bytes, bytes]:
    """Public key and evidence of a frame EVIDENCE."""
    if len(payload) <= PUBLIC_KEY_SIZE:
        raise RemoteProtocolError("the peer sent no evidence")
    return payload[:PUBLIC_KEY_SIZE], payload[PUBLIC_KEY_SIZE:]


class SecureChannel:
    """ChaCha20-Poly1305 with one key and one counter per direction; no message opens twice or out of order."""

    def __init__(self, sending: bytes, receiving: bytes, transcript: bytes) -> None:
        self._sending = ChaCha20Poly1305(sending)
        self._receiving = ChaCha20Poly1305(receiving)
        self._transcript = transcript
        self._sent = 0
        self._received = 0

    def seal(self, message: bytes) -> bytes:
        """Encrypt the next message to the peer."""
        sealed = self._sending.encrypt(self._sent.to_bytes(12, "big"), message, self._transcript)
        self._sent += 1
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """Decrypt the next message of the peer."""
        try:
            message = self._receiving.decrypt(self._received.to_bytes(12, "big"), sealed, self._transcript)
        except InvalidTag as error:
            raise VerificationError(
                "the peer's message does not decrypt: it was altered, or the peer has not the key that it showed",
                step="message",
            ) from error
        self._received += 1
        return message
