{{/* Where collateral comes from: the collateral service, else an operator's PCCS, else an empty word. */}}
{{- define "confcom.collateralSource" -}}
{{- if .Values.collateral.enabled }}https://confcom-collateral.confcom-system.svc:8081
{{- else }}{{ splitList "/sgx/certification" .Values.collateral.url | first | trimSuffix "/" }}{{ end }}
{{- end }}

{{/* The authority of the collateral service's certificate, as a volume. A pod waits for it, because the key is named. List: root, path. */}}
{{- define "confcom.collateralCa" -}}
{{- if (index . 0).Values.collateral.enabled -}}
- name: collateral-ca
  at: {{ index . 1 }}
  configMap: {name: confcom-collateral-ca, items: [{key: ca-certificates.crt, path: ca-certificates.crt}]}
{{- end }}
{{- end }}

{{/* The port of an operator's own PCCS, if there is one, as a list. */}}
{{- define "confcom.collateralPorts" -}}
{{- if and (eq .Values.platform "intel") .Values.collateral.url (not .Values.collateral.enabled) -}}
[{{ regexFind ":[0-9]+$" (urlParse .Values.collateral.url).host | trimPrefix ":" | default "443" }}]
{{- else }}[]{{ end }}
{{- end }}

{{/*
What a service that judges quotes needs besides: where it gets collateral, and on the simulated platform the root of
the world, with which quotes could be forged: a task takes out the root's certificate.
*/}}
{{- define "trait.judges" -}}
{{- $values := .root.Values }}
{{- $simulated := eq $values.platform "simulated" }}
{{- $asked := ternary (list 53 8081) (list 53 80 443 8081) $values.collateral.enabled -}}
egress: {{ concat $asked (include "confcom.collateralPorts" .root | fromYamlArray) | toJson }}
settings:
  COLLATERAL: {{ include "confcom.collateralSource" .root | default "intel" | quote }}
  {{- if $values.collateral.enabled }}
  COLLATERAL_CA: /etc/confcom/collateral-ca/ca-certificates.crt
  {{- end }}
  {{- if $simulated }}
  TRUST_ROOTS: /trust/world/root_ca.pem
  {{- end }}
{{- if $simulated }}
init:
- name: root
  args: [simulate, collateral, /world/machine.json, -o, /trust/world]
  mounts: [{name: world, at: /world}, {name: trust, at: /trust, writable: true}]
{{- end }}
volumes:
{{- include "confcom.collateralCa" (list .root "/etc/confcom/collateral-ca") | nindent 0 }}
{{- if $simulated }}
- {name: trust, at: /trust, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: world, secret: {secretName: confcom-simulated-world}}
{{- end }}
{{- end }}
