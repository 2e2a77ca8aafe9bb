"""What an operator decides about the add-on: one frozen struct, from which every Kubernetes object follows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from confcom.errors import ConfigError
from confcom.formats.arguments import explain_settings
from confcom.protocols.certificate_requests import SIGNER_NAME, check_other_signers

DEFAULT_IMAGE = "confcom/confcom"
"""Repository of the released images; the tag is the version."""
MAX_SIZES = 256
"""Characters of the sizes of a simulated node's EPC."""

RUNTIME_DEFAULT = "runtime/default"
LOCALHOST = "localhost/"
"""Where a seccomp profile is looked for; written as Kubernetes' annotations had it."""

_DNS = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_GRANT = rf"{_DNS}/(?:{_DNS}(?:\.{_DNS})*|\*)"
_SIZE = r"[0-9]{1,15}(?:[KMGT](?:i|iB)?)?"
_LABEL_KEY = rf"(?:{_DNS}(?:\.{_DNS})*/)?[A-Za-z0-9](?:[-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
_LABEL_VALUE = r"(?:[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?"
_LABEL = rf"{_LABEL_KEY}={_LABEL_VALUE}"
_TOLERATION = rf"({_LABEL_KEY})(?:=({_LABEL_VALUE}))?(?::(NoSchedule|PreferNoSchedule|NoExecute))?"
# What a registry's client takes, without saying more than that: no blanks, nothing that steers a shell or YAML.
_IMAGE = r"(?:[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511})?"
# It becomes part of JSON and YAML: no quotes, no backslashes.
_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])"
_PORT = r"(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_URL = rf"(?:https?://{_HOST}{_PORT}(?:/[A-Za-z0-9._~:/?&=%+@-]{{0,500}})?)?"
_ISSUER = rf"(?:https://{_HOST}{_PORT}(?:/[A-Za-z0-9._~/-]{{0,200}})?)?"
_PKCS11 = r"(?:pkcs11:token=[A-Za-z0-9._~%-]{1,128}\?module-path=/[A-Za-z0-9._~%/-]{1,255})?"
_STORAGE = r"(?:(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[1-9][0-9]{0,8}[MGT]i)?"
_NAMED = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_OBJECT = rf"(?:{_NAMED})?"
# `ipaddress` reads masks and zones too, which Kubernetes does not.
_CIDR = r"[0-9A-Fa-f.:]{2,45}/[0-9]{1,3}"
_FMSPC = r"(?:sgx:|tdx:)?[0-9A-Fa-f]{12}"
_TCB_SET = r"(?:[a-z0-9][a-z0-9-]{0,62}=)?(?:standard|early|[1-9][0-9]{0,8})"
_SIGNER = r"[0-9A-Fa-f]{64}"
_NAME = r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}"
_PROFILE = rf"{RUNTIME_DEFAULT}|{LOCALHOST}(?:{_NAME}/)*{_NAME}"
_UPSTREAM = r"intel|thim|https?://[!-~]{1,500}"

Gid: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class AddonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the add-on; the defaults are those for production."""

    image: str = ""
    """Image of every component; empty is the one of the version that renders, so that an update brings it along."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When the kubelet pulls it."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets in the add-on's namespace with which the nodes pull it; the operator makes them."""
    platform: Literal["intel", "simulated"] = "intel"
    """Real enclaves, or simulated ones, which only relying parties accept that trust their root."""
    simulated_epc: str = "168Mi"
    """EPC of every simulated node: one size per NUMA node, with commas between."""

    quote_helper: bool = False
    """Run the SGX quote helper on every SGX node."""
    webhook: bool = True
    """Run the admission webhook."""
    collateral: bool = False
    """Run the collateral service."""
    collateral_upstream: str = "intel"
    """Where it fetches collateral: intel, thim, or the URL of a PCS or PCCS. Unused on the simulated platform."""
    collateral_fmspcs: tuple[str, ...] = ()
    """Kinds of platforms, FMSPC or tdx:FMSPC, that it has everything for before it is asked."""
    collateral_tcb_sets: tuple[str, ...] = ()
    """What its clients get as the standard set: early or a TCB evaluation data number, and per group GROUP=SET."""
    collateral_storage: str = ""
    """A volume that keeps its store: SIZE of the default storage class, or CLASS/SIZE. Empty: the pod's own folder."""
    collateral_tls_secret: str = ""
    """A Secret with tls.crt, tls.key and ca.crt for it, as cert-manager makes them. Empty: it makes its certificate."""
    collateral_database: str = ""
    """A Secret with `url`, `owner-url`, `role` and `ca.crt` of a PostgreSQL for its store, instead of the volume.
    Empty: an SQLite file, and one pod."""
    collateral_database_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 5432
    """The port of that PostgreSQL, for the network policies."""
    collateral_replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    """Pods over that PostgreSQL."""
    collateral_url: str = ""
    """Without the collateral service: the PCCS that quote helpers ask. Empty: the one that their image names."""
    attestation: bool = False
    """Run the attestation service."""
    attestation_url: str = ""
    """The URL by which relying parties reach it, the issuer of its tokens. Empty: that of its Service."""
    attestation_storage: str = "1Gi"
    """A volume for its policies, audit record and signing keys: SIZE or CLASS/SIZE. Empty: the pod's own folder."""
    attestation_tls_secret: str = ""
    """A Secret with tls.crt, tls.key and ca.crt for it, as cert-manager makes them. Empty: it makes its certificate."""
    attestation_administrators: str = ""
    """The Secret with administrators.toml, and with the keys and authorities that it names (OIDC, client certificates).
    Empty: confcom-attestation-admin. It need not be there: until then no policy can be read or set."""
    attestation_keys: str = ""
    """PKCS#11 URI of a token with its signing keys, without a PIN; the image has the module. Empty: files on the
    volume."""
    attestation_pin_secret: str = ""
    """The Secret with the PIN of that token's user under the key `pin`."""
    attestation_database: str = ""
    """A Secret with `url`, `owner-url`, `role` and `ca.crt` of a PostgreSQL for policies and audit record, instead of
    the volume; signing keys are then in a Secret too. Empty: an SQLite file on the volume, and one pod."""
    attestation_database_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 5432
    """The port of that PostgreSQL, for the network policies."""
    attestation_replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    """Pods over that PostgreSQL."""
    attested_certificates: bool = False
    """Run the certificate signer, which gives attested pods ordinary TLS certificates."""
    approve_for: tuple[str, ...] = ()
    """Other signers for which it approves requests, after the same checks: clusterissuers.cert-manager.io/NAME."""
    metrics: bool = False
    """Run the exporter of EPC use on every SGX node."""
    autoscaling: bool = False
    """Run the metrics API, by which HPA scales on EPC and quotes; it needs `metrics`."""
    monitoring: Literal["auto", "operator", "annotations", "off"] = "auto"
    """How Prometheus finds the components: monitors and alerts of its operator, or annotations; auto is the operator
    where the cluster has its kinds."""
    monitoring_labels: tuple[str, ...] = ()
    """Labels, KEY=VALUE, by which a Prometheus selects monitors and alerts."""
    epc_enforcement: bool = False
    """Let it hold containers to their requests where the kernel counts EPC in cgroups, to which it may then write."""

    publisher: Literal["auto", "devices", "node-status", "dra"] = "auto"
    """How the nodes publish their EPC."""
    epc_reserve_mib: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    """MiB held back on every node."""
    overcommit: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    """What may be requested as a multiple of what is there beside the reserve."""
    quote_helper_epc_mib: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    """MiB of EPC for QE and PCE of the quote helper. Every node keeps twice that back, for a successor too."""
    quote_helper_groups: tuple[Gid, ...] = ()
    """Numbers of the groups that own the SGX devices on the nodes (`sgx_prv`), to which the quote helper belongs."""
    quote_helper_seccomp: str = RUNTIME_DEFAULT
    """Its seccomp profile: runtime/default, or localhost/PATH for one in the folder of the nodes' kubelets."""
    expected_signers: tuple[str, ...] = ()
    """MRSIGNERs of the enclaves that are expected on the nodes: the quote helper counts quotes of others, for an alert,
    and gives them all the same. Empty: any."""
    provision_grants: tuple[str, ...] = ()
    """Who may hold the provisioning device: NAMESPACE/SERVICEACCOUNT, or NAMESPACE/*."""

    node_selector: tuple[str, ...] = ()
    """Further labels, KEY=VALUE, that a node must have to get the node components."""
    tolerations: tuple[str, ...] = ()
    """Further taints, KEY[=VALUE][:EFFECT], that the node components tolerate; `*` is all of them."""
    webhook_replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    """Pods of the webhook."""
    webhook_namespaces: Literal["all", "labelled"] = "all"
    """Which pods it reviews: those of all namespaces, or of those with the label `confcom.dev/sgx: "true"`."""
    webhook_client_ca: str = ""
    """A ConfigMap of confcom-system with ca.crt, the authority of the API server's client certificate. Without it the
    webhook answers every client."""
    oversized: Literal["refuse", "warn"] = "refuse"
    """What it does with a pod that wants more EPC than any node has; warn where larger nodes are made on demand."""
    api_ports: tuple[Port, ...] = (443, 6443)
    """Where the API server listens: its Service's port and those behind it, which network policies let pods ask."""
    api_addresses: tuple[str, ...] = ()
    """CIDRs from which the API server reaches the webhook, which the network policy admits alone. Empty: any source."""

    @classmethod
    def read(cls, values: Mapping[str, Any], named: Callable[[str], str] = str) -> AddonConfig:
        """Settings by field, the rest as they are by default; words are read as numbers and switches where one belongs.

        A `ConfigError` says what is wrong with which value; `named` makes of a field what its writer calls it.
        """
        for field, pattern, wrong, advice in _PATTERNS:  # before the types, because their errors say less
            given = values.get(field, ())
            for text in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(text, str) and re.fullmatch(pattern, text) is None:
                    raise ConfigError(f"{named(field)}: {text!r} {wrong}", advice=advice)
        try:
            found = msgspec.convert(dict(values), cls, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(explain_settings(error, cls, named)) from error
        for cidr in found.api_addresses:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as error:
                raise ConfigError(
                    f"{named('api_addresses')}: {cidr!r} is no CIDR: {error}", advice=_CIDR_ADVICE
                ) from error
        return found

    def check(self) -> None:
        """Refuse wrong values as `read` does, and settings that do not fit together.

        `read` takes the latter too: earlier versions may have written them.
        """
        AddonConfig.read(msgspec.structs.asdict(self))
        if bool(self.attestation_keys) is not bool(self.attestation_pin_secret):
            raise ConfigError(
                "the attestation service's keys in a PKCS#11 token and the Secret with its PIN belong together",
                advice="Give both, --attestation-keys URI and --attestation-pin-secret NAME, or neither ('').",
            )
        for enabled, what, switch in (
            (self.attestation, "attestation service", "attestation-service"),
            (self.attested_certificates, "certificate signer", "attested-certificates"),
        ):
            if enabled and self.platform == "simulated" and not self.collateral:
                raise ConfigError(
                    f"the {what} of a simulated cluster has no collateral to verify quotes with",
                    advice=f"Run the collateral service too, --enable-collateral, or add --disable-{switch}.",
                )
        check_other_signers(self.approve_for, simulated=self.platform == "simulated")
        groups = [text.rpartition("=")[0] for text in self.collateral_tcb_sets]
        if len(set(groups)) < len(groups):
            raise ConfigError(
                f"{', '.join(self.collateral_tcb_sets)} gives the same clients two sets",
                setting="collateral_tcb_sets",
                advice="Give one set without a group, and one for each GROUP=.",
            )
        if self.autoscaling and not self.metrics:
            raise ConfigError(
                "autoscaling has nothing to scale on without the exporter of EPC use",
                advice="Add --enable-metrics, or --disable-autoscaling.",
            )
        narrow = [grant for grant in self.provision_grants if not grant.endswith("/*")]
        if narrow and self.publisher == "dra":
            raise ConfigError(
                f"the grant {narrow[0]!r} is for one service account, and claims (--publisher dra) tell no accounts "
                "apart: every pod of the namespace would have the provisioning device",
                advice="Grant it to a namespace of its own, NAMESPACE/*, or choose another publisher.",
            )

    def changed(self, changes: Mapping[str, Any]) -> AddonConfig:
        """The same settings with some changed; `ConfigError` names what makes no sense."""
        found = AddonConfig.read(msgspec.structs.asdict(self) | dict(changes))
        found.check()
        return found

    def node_labels(self) -> dict[str, str]:
        """`node_selector` as a mapping."""
        return dict(text.split("=") for text in self.node_selector)

    def monitor_labels(self) -> dict[str, str]:
        """`monitoring_labels` as a mapping."""
        return dict(text.split("=") for text in self.monitoring_labels)

    def tolerated(self) -> list[dict[str, str]]:
        """`tolerations` as Kubernetes writes them."""
        found: list[dict[str, str]] = []
        for text in self.tolerations:
            if text == "*":
                found.append({"operator": "Exists"})
                continue
            key, value, effect = re.fullmatch(_TOLERATION, text).groups()  # type: ignore[union-attr]  # checked by `read`
            toleration = {"key": key} | ({"operator": "Exists"} if value is None else {"value": value})
            found.append(toleration if effect is None else toleration | {"effect": effect})
        return found

    @property
    def provision_namespaces(self) -> tuple[str, ...]:
        """Namespaces of the grants, each once, in their order."""
        return tuple(dict.fromkeys(grant.split("/")[0] for grant in self.provision_grants))


_CIDR_ADVICE = "Write ADDRESS/BITS, as in 10.240.0.4/32 or 10.240.0.0/24."
_SECRET = (_OBJECT, "is no name of a Secret", "Write the name of a Secret in the add-on's namespace.")
_VOLUME = (_STORAGE, "is no volume", "Write SIZE or CLASS/SIZE, as in 1Gi or standard/1Gi.")
_KEY_VALUE = (_LABEL, "is no label", "Write KEY=VALUE.")
_PATTERNS = (
    ("image", _IMAGE, "is no image", "Write REGISTRY/NAME:TAG, without blanks."),
    ("image_pull_secrets", _NAMED, *_SECRET[1:]),
    ("simulated_epc", rf"(?=.{{1,{MAX_SIZES}}}\Z){_SIZE}(?:,{_SIZE})*", "is no size of EPC",
     "Write for example 168Mi, or 64Gi,64Gi."),
    ("collateral_upstream", _UPSTREAM, "is no upstream", "Write intel, thim, or a URL."),
    ("collateral_fmspcs", _FMSPC, "is no FMSPC", "Write 12 hexadecimal digits, after tdx: for TDX."),
    ("collateral_tcb_sets", _TCB_SET, "is no set", "Write standard, early or a number, after GROUP= for a group."),
    ("collateral_storage", *_VOLUME),
    ("collateral_tls_secret", *_SECRET),
    ("collateral_database", *_SECRET),
    ("collateral_url", _URL, "is no URL of a PCCS", "Write https://HOST:PORT, without /sgx/certification."),
    ("attestation_url", _ISSUER, "is no URL of an issuer",
     "Write https://HOST, with a port or path if clients need them."),
    ("attestation_storage", *_VOLUME),
    ("attestation_tls_secret", *_SECRET),
    ("attestation_administrators", *_SECRET),
    ("attestation_keys", _PKCS11, "is no URI of a PKCS#11 token",
     "Write pkcs11:token=NAME?module-path=/PATH/IN/THE/IMAGE; the PIN is in a Secret."),
    ("attestation_pin_secret", *_SECRET),
    ("attestation_database", *_SECRET),
    ("monitoring_labels", *_KEY_VALUE),
    ("quote_helper_seccomp", _PROFILE, "is no seccomp profile",
     "Write runtime/default, or a path as in localhost/confcom/quote-helper.json."),
    ("quote_helper_groups", r"[0-9]{1,10}", "is no number of a group",
     "Write numbers with commas between, as in 105,106."),
    ("approve_for", SIGNER_NAME.pattern, "is no signer of certificate requests",
     "Write it as clusterissuers.cert-manager.io/NAME."),
    ("expected_signers", _SIGNER, "is no MRSIGNER", "Write its 64 hexadecimal digits."),
    ("provision_grants", _GRANT, "names no service account", "Write NAMESPACE/SERVICEACCOUNT, or NAMESPACE/*."),
    ("node_selector", *_KEY_VALUE),
    ("tolerations", rf"\*|{_TOLERATION}", "is no taint",
     "Write KEY, KEY=VALUE or KEY=VALUE:EFFECT, with NoSchedule, PreferNoSchedule or NoExecute."),
    ("webhook_client_ca", _OBJECT, "is no name of a ConfigMap", "Write the name of one in the add-on's namespace."),
    ("api_ports", r"[1-9][0-9]{0,4}", "is no port", "Write numbers with commas between, as in 443,6443."),
    ("api_addresses", _CIDR, "is no CIDR", _CIDR_ADVICE),
)  # fmt: skip
"""Settings of text: field, pattern of it or of each of its words, what is said of a wrong one, and advice."""


def image_of(config: AddonConfig, version: str) -> str:
    """The image that is run: the one that was chosen, else the one of this version."""
    return config.image or f"{DEFAULT_IMAGE}:{version}"
