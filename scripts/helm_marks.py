"""Marks: settings that are rendered as values which no text has by chance, and become expressions of a template."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import HELPER_KEY, key_of
from confcom.manifests.webhook import WebhookCa

GENERATED = "Generated from confcom.manifests by scripts/generate.py; do not edit."

CA_MARK = WebhookCa(b"mark-certificate", b"mark-key", b"mark-bundle")
WEBHOOK_CA = '{{- $ca := include "confcom.webhookCa" . | fromJson }}\n'
URL_MARK = "https://mark.example:8765"
STORAGE_MARK = "mark-class/9876Gi"
# Marks for all others: values that no text has by chance.
MARKS: dict[str, Any] = {
    "image": "mark.example/image:mark",
    "image_pull_policy": "Never",
    "image_pull_secrets": ("mark-pull",),
    "simulated_epc": "98765432Mi",
    "collateral_upstream": "https://mark.example/upstream",
    "collateral_fmspcs": ("0123456789ab",),
    "collateral_tls_secret": "mark-secret",
    "epc_reserve_mib": 98765431,
    "overcommit": 97.53125,
    "quote_helper_epc_mib": 4091,
    "provision_grants": ("mark-namespace/*",),
    "node_selector": ("mark.example/selector=mark",),
    "tolerations": ("mark.example/toleration=mark:NoExecute",),
    "webhook_replicas": 13,
    "webhook_client_ca": "mark-client-ca",
    "oversized": "warn",
    "api_ports": (61357,),
    "api_addresses": ("192.0.2.77/32",),
    "quote_helper_seccomp": "localhost/mark/profile.json",
    "quote_helper_groups": (1928374650,),
}


def value_of(field: str) -> str:
    """The name of a setting among the chart's values: as in the add-on's state, but for AKS' name of the helper."""
    key = key_of(field)
    return "quoteHelperEnabled" if key == HELPER_KEY else key


def with_expressions(text: str) -> str:
    """Marks become expressions. What is a setting of its own, and not only a shape, too."""
    for pattern, expression in _PATTERNS:
        text = re.sub(pattern, expression, text)
    if re.search(r"\bmark\b", text):
        raise ValueError(f"a mark was left in: {text}")
    return text


def _quoted(field: str) -> str:
    return f"{{{{ .Values.{value_of(field)} | toString | quote }}}}"


def _environment(suffix: str, expression: str) -> tuple[str, str]:
    """A variable whose value is an expression, whatever it was rendered with."""
    return rf"(?m)(?<={suffix}\n)(?P<indent> +)value: .*$", f"\\g<indent>value: {expression}"


def _switch_patterns() -> list[tuple[str, str]]:
    switches = [name for name in AddonConfig.__struct_fields__ if isinstance(getattr(AddonConfig(), name), bool)]
    return [(rf"(?m)^  {key_of(name)}: '(true|false)'$", f"  {key_of(name)}: {_quoted(name)}") for name in switches]


_LIMIT = '{{ include "confcom.provisionLimit" . | quote }}'
_NAMESPACES = '{{ include "confcom.provisionNamespaces" . | quote }}'
_SELECTOR = """{{- range .Values.nodeSelector }}
\\g<indent>- key: {{ (splitn "=" 2 .)._0 | quote }}
\\g<indent>  operator: In
\\g<indent>  values:
\\g<indent>  - {{ (splitn "=" 2 .)._1 | quote }}
{{- end }}
"""
_TOLERATION = """{{- range .Values.tolerations }}
\\g<indent>- {{ include "confcom.toleration" . }}
{{- end }}
"""
_GROUPS = """\\g<indent>supplementalGroups:
{{- range .Values.quoteHelperGroups }}
\\g<indent>- {{ . | int }}
{{- else }} []
{{- end }}"""
_SECCOMP = """{{- if hasPrefix "localhost/" .Values.quoteHelperSeccomp }}
\\g<indent>type: Localhost
\\g<indent>localhostProfile: {{ trimPrefix "localhost/" .Values.quoteHelperSeccomp | quote }}
{{- else }}
\\g<indent>type: RuntimeDefault
{{- end }}
"""
_API_PORTS = """{{- range .Values.apiPorts }}
\\g<indent>- port: {{ . | int }}
\\g<indent>  protocol: TCP
{{- end }}
"""
_API_ADDRESSES = """{{- with .Values.apiAddresses }}
\\g<indent>from:
{{- range . }}
\\g<indent>- ipBlock:
\\g<indent>    cidr: {{ . | quote }}
{{- end }}
{{- end }}
"""
_WITH_CLIENT_CA = """{{- if .Values.webhookClientCa }}
\\g<found>{{- end }}
"""
_WITH_HELPER = """{{- if .Values.quoteHelperEnabled }}
\\g<found>{{- end }}
"""
"""What the device plugin's DaemonSet has only where there is a quote helper."""
_STORAGE_CLASS = """{{- if contains "/" .Values.collateralStorage }}
\\g<indent>storageClassName: {{ splitList "/" .Values.collateralStorage | first | quote }}
{{- end }}
"""
_CA = [(b64encode(text).decode(), f"{{{{ $ca.{name} }}}}") for name, text in CA_MARK._asdict().items()]
_PULL_SECRETS = """{{- with .Values.imagePullSecrets }}
\\g<indent>imagePullSecrets:
{{- range . }}
\\g<indent>- name: {{ . | quote }}
{{- end }}
{{- end }}
"""
_LABELS = """\\g<indent>app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
\\g<indent>helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
"""
_PATTERNS: list[tuple[str, str]] = [
    (r"(?m)^(?P<indent> +)imagePullSecrets:\n +- name: mark-pull\n", _PULL_SECRETS),
    (r"(?m)^  imagePullSecrets: mark-pull$", '  imagePullSecrets: {{ join "," .Values.imagePullSecrets | quote }}'),
    (r"(?m)^(?P<indent> +)app\.kubernetes\.io/version: mark-version\n", _LABELS),
    *_CA,
    # The state's text of the image is the value; what is run is that, or this version's own.
    (r"(?m)^  image: mark\.example/image:mark$", f"  image: {_quoted('image')}"),
    (r"mark\.example/image:mark", '{{ include "confcom.image" . | quote }}'),
    (r"(?m)^  version: mark-version$", "  version: {{ .Chart.AppVersion | quote }}"),
    (r"imagePullPolicy: Never", "imagePullPolicy: {{ .Values.imagePullPolicy }}"),
    (r"(?m)^  platform: (intel|simulated)$", f"  platform: {_quoted('platform')}"),
    (r"(?m)^  publisher: [-a-z]+$", f"  publisher: {_quoted('publisher')}"),
    (r"(?m)^  webhookNamespaces: (all|labelled)$", f"  webhookNamespaces: {_quoted('webhook_namespaces')}"),
    *_switch_patterns(),
    _environment("_PUBLISHER", _quoted("publisher")),
    _environment("WEBHOOK_QUOTE_HELPER", _quoted("quote_helper")),
    _environment("_OVERSIZED", _quoted("oversized")),
    _environment("_PROVISION_LIMIT", _LIMIT),
    _environment("_PROVISION_NAMESPACES", _NAMESPACES),
    (r"(?m)^  oversized: warn$", f"  oversized: {_quoted('oversized')}"),
    (
        r"(?m)^  quoteHelperGroups: '1928374650'$",
        '  quoteHelperGroups: {{ join "," .Values.quoteHelperGroups | quote }}',
    ),
    (r"(?m)^(?P<indent> +)supplementalGroups:\n +- 1928374650$", _GROUPS),
    (r"(?m)^  quoteHelperSeccomp: localhost/mark/.*$", f"  quoteHelperSeccomp: {_quoted('quote_helper_seccomp')}"),
    (r"(?m)^(?P<indent> +)type: Localhost\n +localhostProfile: mark/.*\n", _SECCOMP),
    (r"(?m)^  apiPorts: '61357'$", '  apiPorts: {{ join "," .Values.apiPorts | quote }}'),
    (r"(?m)^(?P<indent> +)- port: 61357\n +protocol: TCP\n", _API_PORTS),
    (r"(?m)^  apiAddresses: 192\.0\.2\.77/32$", '  apiAddresses: {{ join "," .Values.apiAddresses | quote }}'),
    (r"(?m)^(?P<indent> +)from:\n +- ipBlock:\n +cidr: 192\.0\.2\.77/32\n", _API_ADDRESSES),
    (r"(?m)^  webhookClientCa: mark-client-ca$", f"  webhookClientCa: {_quoted('webhook_client_ca')}"),
    (r"(?m)^(?P<found>(?P<indent> +)- name: client-ca\n(?:(?P=indent)  .*\n)+)", _WITH_CLIENT_CA),
    (r"(?m)^(?P<found> +- name: \w+_WEBHOOK_CLIENT_CA\n.*\n)", _WITH_CLIENT_CA),
    (r"\bmark-client-ca\b", _quoted("webhook_client_ca")),
    (r"(?m)^  collateral(Url|Storage): .*$", "  collateral\\g<1>: {{ .Values.collateral\\g<1> | toString | quote }}"),
    (r"(?m)^  collateralTlsSecret: .*$", f"  collateralTlsSecret: {_quoted('collateral_tls_secret')}"),
    (r"(?m)^  collateralFmspcs: .*$", '  collateralFmspcs: {{ join "," .Values.collateralFmspcs | quote }}'),
    _environment("_FMSPCS", '{{ join "," .Values.collateralFmspcs | quote }}'),
    _environment("_TLS_GIVEN", "{{ not (empty .Values.collateralTlsSecret) | toString | quote }}"),
    (r"\bmark-secret\b", '{{ .Values.collateralTlsSecret | default "confcom-collateral-tls" | quote }}'),
    (r"(?m)^(?P<found>(?P<indent> +)- name: helper-folder\n(?:(?P=indent)  .*\n)+)", _WITH_HELPER),
    (r"(?m)^(?P<found> +- name: \w+_HELPER_(FOLDER|EPC_MIB)\n.*\n)", _WITH_HELPER),
    (r"(?m)^(?P<indent> +)storageClassName: mark-class\n", _STORAGE_CLASS),
    (r"storage: 9876Gi", 'storage: {{ splitList "/" .Values.collateralStorage | last | quote }}'),
    (r"https://mark\.example:8765", '{{ include "confcom.collateralUrl" . }}'),
    (r"port: 8765", 'port: {{ include "confcom.collateralPort" . }}'),
    (r"98765432Mi(?='+\.split)", "{{ .Values.simulatedEpc }}"),
    (r"98765432Mi", _quoted("simulated_epc")),
    (r"https://mark\.example/upstream", _quoted("collateral_upstream")),
    (r"'98765431'", _quoted("epc_reserve_mib")),
    (r"double\('97\.53[0-9]*'\)", "double('{{ .Values.overcommit | toString }}')"),
    (r"'97\.53[0-9]*'", _quoted("overcommit")),
    (r"'4091'", _quoted("quote_helper_epc_mib")),
    (r"replicas: 13", "replicas: {{ .Values.webhookReplicas }}"),
    (r"(?m)^  webhookReplicas: '13'$", f"  webhookReplicas: {_quoted('webhook_replicas')}"),
    (r"mark-namespace/\*(?='+\.split)", '{{ join "," .Values.provisionGrants }}'),
    (r"mark-namespace/\*", '{{ join "," .Values.provisionGrants | quote }}'),
    (r"(?m)^  nodeSelector: mark\.example/.*$", '  nodeSelector: {{ join "," .Values.nodeSelector | quote }}'),
    (r"(?m)^  tolerations: mark\.example/.*$", '  tolerations: {{ join "," .Values.tolerations | quote }}'),
    (r"(?m)^(?P<indent> +)- key: mark\.example/selector\n.*\n.*\n +- mark\n", _SELECTOR),
    (r"(?m)^(?P<indent> +)- key: mark\.example/toleration\n.*\n.*\n", _TOLERATION),
]

EXPRESSIONS = f"""{{{{- /* {GENERATED} */}}}}
{{{{- define "confcom.image" -}}}}
{{{{ .Values.image | default (printf "confcom/confcom:%s" .Chart.AppVersion) }}}}
{{{{- end -}}}}
{{{{- define "confcom.webhookCa" -}}}}
{{{{- $secret := lookup "v1" "Secret" "confcom-system" "sgx-webhook-ca" -}}}}
{{{{- $found := dict -}}}}
{{{{- if $secret -}}}}
{{{{- $_ := set $found "certificate" (index $secret.data "tls.crt") -}}}}
{{{{- $_ := set $found "key" (index $secret.data "tls.key") -}}}}
{{{{- $_ := set $found "bundle" (index $secret.data "ca.crt") -}}}}
{{{{- else -}}}}
{{{{- $made := genCA "confcom admission webhook CA" 3650 -}}}}
{{{{- $kind := "MutatingWebhookConfiguration" -}}}}
{{{{- $now := lookup "admissionregistration.k8s.io/v1" $kind "" "sgx-webhook.confcom.dev" -}}}}
{{{{- $trusted := "" -}}}}
{{{{- if $now }}}}{{{{ $trusted = (first $now.webhooks).clientConfig.caBundle | default "" | b64dec }}}}{{{{ end -}}}}
{{{{- $_ := set $found "certificate" ($made.Cert | b64enc) -}}}}
{{{{- $_ := set $found "key" ($made.Key | b64enc) -}}}}
{{{{- $_ := set $found "bundle" (printf "%s%s" $made.Cert $trusted | b64enc) -}}}}
{{{{- end -}}}}
{{{{ toJson $found }}}}
{{{{- end -}}}}
{{{{- define "confcom.provisionLimit" -}}}}
{{{{ if .Values.provisionGrants }}}}110{{{{ else }}}}0{{{{ end }}}}
{{{{- end -}}}}
{{{{- define "confcom.provisionNamespaces" -}}}}
{{{{- $found := list -}}}}
{{{{- range .Values.provisionGrants }}}}
{{{{- if and (eq $.Values.publisher "dra") (not (hasSuffix "/*" .)) }}}}
{{{{- fail (printf "the grant %s is for one service account, and claims (publisher dra) tell none apart" .) }}}}
{{{{- end }}}}
{{{{- $found = append $found (splitList "/" . | first) }}}}
{{{{- end -}}}}
{{{{ join "," (uniq $found) }}}}
{{{{- end -}}}}
{{{{- define "confcom.collateralUrl" -}}}}
{{{{ splitList "/sgx/certification" .Values.collateralUrl | first | trimSuffix "/" }}}}
{{{{- end -}}}}
{{{{- define "confcom.collateralPort" -}}}}
{{{{- $host := (urlParse .Values.collateralUrl).host -}}}}
{{{{- if regexMatch ":[0-9]+$" $host }}}}{{{{ regexFind "[0-9]+$" $host }}}}{{{{ else }}}}443{{{{ end }}}}
{{{{- end -}}}}
{{{{- define "confcom.toleration" -}}}}
{{{{- $found := dict -}}}}
{{{{- if eq . "*" }}}}{{{{ $_ := set $found "operator" "Exists" }}}}{{{{ else }}}}
{{{{- $parts := splitn ":" 2 . }}}}{{{{ $pair := splitn "=" 2 $parts._0 }}}}
{{{{- $_ := set $found "key" $pair._0 }}}}
{{{{- if contains "=" $parts._0 }}}}{{{{ $_ := set $found "value" $pair._1 }}}}
{{{{- else }}}}{{{{ $_ := set $found "operator" "Exists" }}}}{{{{ end }}}}
{{{{- if contains ":" . }}}}{{{{ $_ := set $found "effect" $parts._1 }}}}{{{{ end }}}}
{{{{- end -}}}}
{{{{ toJson $found }}}}
{{{{- end -}}}}
"""
