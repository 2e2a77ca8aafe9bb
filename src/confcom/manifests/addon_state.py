"""The add-on's memory: a ConfigMap with flat strings, as `az aks` shows add-ons. Keys compare without case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from confcom.errors import ConfigError
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import ADDON, ITSELF, NAMESPACE, Object, completed, namespaced_object, number

API_KEY = "ACCSGXDevicePlugin"
"""What AKS calls the add-on in a cluster's profile."""
HELPER_KEY = "ACCSGXQuoteHelperEnabled"
STATE_CONFIG_MAP = ITSELF.name

_ENABLED = "enabled"
_VERSION = "version"
_ADVICE = f"Correct it with `kubectl -n {NAMESPACE} edit configmap {STATE_CONFIG_MAP}`, or purge and enable it again."


class AddonState(NamedTuple):
    """What a cluster remembers of the add-on; `version` is that of the program which wrote it."""

    enabled: bool
    version: str
    config: AddonConfig


def flat_settings(config: AddonConfig) -> dict[str, str]:
    """Every setting as a string, lists with commas."""
    return {key_of(field): _flat(getattr(config, field)) for field in config.__struct_fields__}


def state_object(state: AddonState) -> Object:
    """The ConfigMap."""
    about = {"name": ADDON, "apiKey": API_KEY, _ENABLED: _flat(state.enabled), _VERSION: state.version}
    made = namespaced_object("v1", "ConfigMap", STATE_CONFIG_MAP, ITSELF.component)
    (found,) = completed([made], state.config, state.version)
    return found | {"data": about | flat_settings(state.config)}


def parse_state(data: Mapping[str, str]) -> AddonState:
    """Read the ConfigMap; what a later version may have written beside is left out, and a wrong value is named."""
    values = {key.lower(): value for key, value in data.items()}
    known: dict[str, Any] = {}
    for field in AddonConfig.__struct_fields__:
        text = values.get(key_of(field).lower())
        if text is not None:
            known[field] = _parse(field, text)
    try:
        config = AddonConfig.read(known, key_of)
    except ConfigError as error:
        raise ConfigError(f"ConfigMap {NAMESPACE}/{STATE_CONFIG_MAP}: {error}", advice=_ADVICE) from error
    return AddonState(values.get(_ENABLED, "").lower() == "true", values.get(_VERSION, ""), config)


def key_of(field: str) -> str:
    """The key of a field: AKS' own for the quote helper, else the field's name in Kubernetes' way of writing."""
    if field == "quote_helper":
        return HELPER_KEY
    if _is_switch(field):
        return f"{_camel(field)}Enabled"
    return _camel(field)


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join("MiB" if word == "mib" else word.capitalize() for word in rest)


def _is_switch(field: str) -> bool:
    return isinstance(getattr(_DEFAULTS, field), bool)


def _flat(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(field: str, text: str) -> object:
    default = getattr(_DEFAULTS, field)
    if isinstance(default, tuple):
        return [word for part in text.split(",") if (word := part.strip())]
    return text.strip().lower() if isinstance(default, bool) else text


_DEFAULTS = AddonConfig()
