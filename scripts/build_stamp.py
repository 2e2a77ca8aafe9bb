"""The build hook of wheel and sdist: puts the commit they are built from into the package, as `_built.json`."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INFO = Path("src") / "confcom" / "cli" / "build_info.py"


class BuildStamp(BuildHookInterface[Any]):
    """An editable install has none: the checkout is asked when `confcom --version -v` runs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the stamp, unless the tree is an sdist, which has it."""
        tree = Path(self.root)
        package = "confcom" if self.target_name == "wheel" else "src/confcom"
        if version == "editable" or (tree / "src" / "confcom" / "_built.json").is_file():
            return
        spec = importlib.util.spec_from_file_location("build_info", tree / INFO)
        if spec is None or spec.loader is None:
            raise RuntimeError(f"{tree / INFO} cannot be imported")
        info = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(info)
        if found := info.stamp(tree):
            self.folder = tempfile.TemporaryDirectory()
            written = Path(self.folder.name) / info.STAMP
            written.write_text(json.dumps(found, sort_keys=True) + "\n")
            build_data["force_include"][str(written)] = f"{package}/{info.STAMP}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the written stamp."""
        del version, build_data, artifact_path
        if folder := getattr(self, "folder", None):
            folder.cleanup()
