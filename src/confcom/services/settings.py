"""Configuration of the daemons: defaults < file < environment < flags, into one frozen struct per service."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from confcom.errors import ConfigError
from confcom.formats.text import without_bom

MAX_SETTINGS = 64 * 1024
"""Bytes of a file of settings."""
_Config = TypeVar("_Config", bound=msgspec.Struct)


def load(
    kind: type[_Config],
    *,
    service: str,
    file: Path | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> _Config:
    """Make the configuration of a service.

    `file` is TOML with the fields at top level. `environment` is searched for `CONFCOM_<SERVICE>_<FIELD>`. A flag that
    is None was not given. What the struct does not know, or does not allow, is a `ConfigError` that names it.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values |= _convert(kind, _read(file), f"{file}", strict=True)
    prefix = f"CONFCOM_{service.upper().replace('-', '_')}_"
    named = {field.name: _worded(field, environment[f"{prefix}{field.name.upper()}"])
             for field in msgspec.structs.fields(kind) if f"{prefix}{field.name.upper()}" in environment}  # fmt: skip
    values |= _convert(kind, named, f"environment {prefix}…", strict=False)
    values |= _convert(kind, {name: value for name, value in flags.items() if value is not None}, "flags", strict=True)
    return kind(**values)


def render(config: msgspec.Struct) -> str:
    """The configuration as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode()


def _worded(field: msgspec.structs.FieldInfo, text: str) -> object:
    """A variable's text; of a list, its words, with commas between."""
    return [word for part in text.split(",") if (word := part.strip())] if isinstance(field.default, tuple) else text


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_SETTINGS + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    if len(content) > MAX_SETTINGS:
        raise ConfigError(f"{file} has more than {MAX_SETTINGS} bytes", advice="Name the file of settings.")
    try:
        return tomllib.loads(without_bom(content).decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _convert(kind: type[_Config], values: Mapping[str, Any], source: str, *, strict: bool) -> dict[str, Any]:
    # Each source is checked by itself, so that a mistake is reported where it was made.
    try:
        config = msgspec.convert(dict(values), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    return {name: getattr(config, name) for name in values}
