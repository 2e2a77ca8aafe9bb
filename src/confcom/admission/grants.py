"""Who may hold the provisioning device: service accounts, as the operator wrote them down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from confcom.errors import ConfigError

_NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_GRANT = re.compile(rf"({_NAME})/({_NAME}|\*)")
MAX_GRANTS = 1024


@dataclass(frozen=True, slots=True)
class Grants:
    """NAMESPACE/SERVICEACCOUNT each, or NAMESPACE/* for every account of a namespace."""

    accounts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read them from text with commas between."""
        words = [word for part in text.split(",") if (word := part.strip())]
        wrong = next((word for word in words if _GRANT.fullmatch(word) is None), None)
        if wrong is not None or len(words) > MAX_GRANTS:
            raise ConfigError(
                f"{wrong or len(words)!r} is no grant of the provisioning device",
                advice="Write NAMESPACE/SERVICEACCOUNT, or NAMESPACE/* for all of a namespace, with commas between.",
            )
        return cls(frozenset(words))

    def allow(self, namespace: str, account: str) -> bool:
        """Whether a service account may hold the device."""
        return not self.accounts.isdisjoint((f"{namespace}/{account}", f"{namespace}/*"))


NO_GRANTS = Grants()
