"""The machine file: what several processes share so that they stand on one simulated machine, as they would on one CPU.

JSON with everything that a machine is made from, its seed included. Its readers can make reports of every enclave
there, so it is written with mode 0600 and never logged.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

import msgspec

from confcom.errors import ConfigError, FormatError
from confcom.formats.text import without_bom
from confcom.simulator.keys import check_seed
from confcom.simulator.machine import DEFAULT_TCB, MachineTcb, PckCa, SimulatedMachine
from confcom.simulator.report_scheme import HARDWARE, REPORT_SCHEMES, report_scheme

FORMAT = "confcom simulated machine"
VERSION = 1
MAX_MACHINE_FILE = 16 * 1024
"""Bytes; a machine file has about 400."""
INDEX_BITS = 31
"""Machines of one world are numbered with this many bits: enough for numbers made from names not to meet."""

_ADVICE = "Make a new machine file, and give the same one to every process of the simulated machine."
_YEARS = range(2000, 2201)


@dataclass(frozen=True, slots=True)
class MachineFile:
    """The content of the file. `created` is when the machine's certificates begin."""

    seed: bytes = field(repr=False)
    created: datetime
    index: int = 0
    tcb: MachineTcb = DEFAULT_TCB
    pck_ca: PckCa = PckCa.PLATFORM
    report_scheme: str = HARDWARE.name

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the JSON; `FormatError` names the field, and never shows the seed."""
        if len(data) > MAX_MACHINE_FILE:
            raise _refusal("", f"is over {MAX_MACHINE_FILE} bytes")
        try:
            form = _FORM.decode(without_bom(data))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _refusal("", str(error)) from None
        if form.format != FORMAT or form.version != VERSION:
            raise _refusal("format", f"is not {FORMAT!r} version {VERSION}")
        if form.created.year not in _YEARS:
            raise _refusal("created", f"must lie in the years {_YEARS[0]} to {_YEARS[-1]}")
        if form.report_scheme not in REPORT_SCHEMES:
            raise _refusal("report_scheme", f"is none of {', '.join(REPORT_SCHEMES)}")
        if form.pck_ca not in tuple(PckCa):
            raise _refusal("pck_ca", f"is none of {', '.join(PckCa)}")
        return cls(
            seed=_seed(form.seed),
            created=form.created.astimezone(UTC),
            index=form.machine,
            tcb=MachineTcb(tuple(form.sgx_components), form.pce_svn),
            pck_ca=PckCa(form.pck_ca),
            report_scheme=form.report_scheme,
        )

    def __bytes__(self) -> bytes:
        form = _Form(
            format=FORMAT,
            version=VERSION,
            seed=self.seed.hex(),
            machine=self.index,
            created=self.created,
            sgx_components=list(self.tcb.sgx_components),
            pce_svn=self.tcb.pce_svn,
            pck_ca=self.pck_ca.value,
            report_scheme=self.report_scheme,
        )
        return msgspec.json.format(msgspec.json.encode(form), indent=2) + b"\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a machine file; `ConfigError` if it cannot be read, `FormatError` with its path if it is wrong."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_MACHINE_FILE + 1)
        except OSError as error:
            raise ConfigError(f"cannot read the machine file {path}: {error.strerror}", advice=_ADVICE) from error
        where = f"machine file {path}"
        if not content:
            raise FormatError("is empty", structure=where, field="", advice=_ADVICE)
        try:
            return cls.parse(content)
        except FormatError as error:
            raise FormatError(error.message, structure=where, field="", advice=error.advice()) from None

    def named(self, name: str) -> Self:
        """The machine of that name in the same world: one name is always one machine."""
        digest = hashlib.sha256(b"confcom simulated machine\0" + name.encode()).digest()
        return replace(self, index=int.from_bytes(digest[:4], "big") >> 32 - INDEX_BITS)

    def write(self, path: Path, *, over: bool = False) -> None:
        """Write the file, mode 0600, whole or not at all; an existing file is left alone with a `ConfigError`.

        With `over`, it is replaced in one step.
        """
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as draft:
                draft.write(bytes(self))
                draft.flush()
                if over:
                    beside = path.with_name(f".{path.name}.{os.getpid()}")
                    os.link(draft.name, beside)
                    beside.replace(path)
                else:
                    os.link(draft.name, path)
        except FileExistsError as error:
            raise ConfigError(
                f"{path} exists already", advice="Use it as it is, or remove it to make another machine."
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot write the machine file {path}: {error.strerror}") from error

    def machine(self) -> SimulatedMachine:
        """The machine, with the same secrets in every process."""
        return SimulatedMachine(
            self.seed,
            self.index,
            tcb=self.tcb,
            report_scheme=report_scheme(self.report_scheme),
            pck_ca=self.pck_ca,
        )


class _Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The JSON form."""

    format: str
    version: int
    seed: str
    machine: Annotated[int, msgspec.Meta(ge=0, lt=1 << INDEX_BITS)]
    created: Annotated[datetime, msgspec.Meta(tz=True)]
    sgx_components: list[int]
    pce_svn: int
    pck_ca: str
    report_scheme: str


_FORM = msgspec.json.Decoder(_Form)


def _seed(digits: str) -> bytes:
    try:
        seed = bytes.fromhex(digits)
        check_seed(seed)
    except (ValueError, ConfigError):
        raise _refusal("seed", "has 16 to 64 bytes in hexadecimal") from None
    return seed


def _refusal(field: str, message: str) -> FormatError:
    return FormatError(message, structure="MachineFile", field=field, advice=_ADVICE)
