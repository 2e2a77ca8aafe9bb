"""Intel's AESM server as a peer, compiled from its source; AESM_SOURCE names a checkout of confidential-computing.sgx.

That is https://github.com/intel/confidential-computing.sgx, before it linux-sgx. Compiling takes a minute, g++, protoc
and protobuf's headers (Debian: g++, protobuf-compiler, libprotobuf-dev). Everything between socket and QE is Intel's;
`aesm_intel.cpp` puts a stand-in in the place of the QE.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SERVICE = Path("psw/ae/aesm_service/source")
HEADERS = (
    SERVICE / "common", SERVICE / "core/ipc", Path("psw/ae/inc"), Path("psw/ae/inc/internal"), Path("common/inc"),
    Path("common/inc/internal"),
)  # fmt: skip
REPLACED = frozenset(("main.cpp", "AESMLogicWrapper.cpp"))
"""Of Intel's files: the process, and what loads QE and PCE."""


def build_intel_server(folder: Path) -> Path | str:
    """Compile it into a folder; the program, or why there is none."""
    source = Path(os.environ.get("AESM_SOURCE", ""))
    core = source / SERVICE / "core"
    if not core.is_dir():
        return "AESM_SOURCE names no checkout of its source"
    if not (shutil.which("g++") and shutil.which("protoc")):
        return "there is no g++ or no protoc"
    program = folder / "aesm_intel"
    files = [file for file in (*core.glob("*.cpp"), *(core / "ipc").glob("*.cpp")) if file.name not in REPLACED]
    headers = [f"-I{folder}", *(f"-I{source / header}" for header in HEADERS)]
    own = Path(__file__).with_suffix(".cpp")
    commands: tuple[list[str | Path], ...] = (
        ["protoc", f"--proto_path={core / 'ipc'}", f"--cpp_out={folder}", "messages.proto"],
        ["g++", "-O2", "-w", "-pthread", *headers, "-o", program, own, folder / "messages.pb.cc", *files, "-lprotobuf"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{command[0]} failed: {done.stderr[-500:]}"
    return program
