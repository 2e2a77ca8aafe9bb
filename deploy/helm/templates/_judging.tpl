{{/*
What a service that judges quotes needs besides: where it gets collateral, and on the simulated platform the root of
the world, with which quotes could be forged: an init container takes out the root's certificate.
*/}}

{{/* List: root, prefix of the variables. */}}
{{- define "judging.settings" -}}
{{- $values := (index . 0).Values }}{{ $prefix := index . 1 -}}
- {name: {{ $prefix }}_COLLATERAL, value: {{ include "confcom.collateralSource" (index . 0) | default "intel" | quote }}}
{{- if $values.collateral.enabled }}
- {name: {{ $prefix }}_COLLATERAL_CA, value: /etc/confcom/collateral-ca/ca-certificates.crt}
{{- end }}
{{- if eq $values.platform "simulated" }}
- {name: {{ $prefix }}_TRUST_ROOTS, value: /trust/world/root_ca.pem}
{{- end }}
{{- end }}

{{- define "judging.initContainers" -}}
{{- if eq .Values.platform "simulated" }}
initContainers:
- name: root
  args: [simulate, collateral, /world/machine.json, -o, /trust/world]
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 256Mi}}
  volumeMounts:
  - {name: world, mountPath: /world, readOnly: true, recursiveReadOnly: IfPossible}
  - {name: trust, mountPath: /trust}
{{- end }}
{{- end }}

{{- define "judging.volumes" -}}
{{- if .Values.collateral.enabled }}
{{- include "confcom.collateralCa" "/etc/confcom/collateral-ca" }}
{{- end }}
{{- if eq .Values.platform "simulated" }}
- {name: trust, at: /trust, readOnly: true, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: world, secret: {secretName: confcom-simulated-world, defaultMode: 0440}}
{{- end }}
{{- end }}

{{/* Ports, as JSON: a list of lists. */}}
{{- define "judging.egress" -}}
{{- $asked := ternary (list 53 8081) (list 53 80 443 8081) .Values.collateral.enabled }}
{{- list $asked (concat .Values.apiServer.ports (include "confcom.collateralPorts" . | fromYamlArray)) | toJson }}
{{- end }}
