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
{{- define "judging.settings" -}}
COLLATERAL: {{ include "confcom.collateralSource" . | default "intel" | quote }}
{{- if .Values.collateral.enabled }}
COLLATERAL_CA: /etc/confcom/collateral-ca/ca-certificates.crt
{{- end }}
{{- if eq .Values.platform "simulated" }}
TRUST_ROOTS: /trust/world/root_ca.pem
{{- end }}
{{- end }}

{{- define "judging.egress" -}}
{{- $asked := ternary (list 53 8081) (list 53 80 443 8081) .Values.collateral.enabled }}
{{- concat $asked (include "confcom.collateralPorts" . | fromYamlArray) | toJson }}
{{- end }}

{{- define "judging.init" -}}
{{- if eq .Values.platform "simulated" -}}
- name: root
  args: [simulate, collateral, /world/machine.json, -o, /trust/world]
  mounts: [{name: world, at: /world}, {name: trust, at: /trust, writable: true}]
{{- end }}
{{- end }}

{{- define "judging.volumes" -}}
{{- include "confcom.collateralCa" (list . "/etc/confcom/collateral-ca") }}
{{- if eq .Values.platform "simulated" }}
- {name: trust, at: /trust, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: world, secret: {secretName: confcom-simulated-world}}
{{- end }}
{{- end }}
