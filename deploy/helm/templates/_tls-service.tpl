{{/*
A service over TLS, one pod with a volume: its rights, its certificate, volume, Service and Deployment.
Dict: root, component, name; own, its values; port, where it listens; servicePort; egress; claim, of its volume.
*/}}
{{- define "confcom.tlsService" -}}
{{- $secret := .own.tlsSecret | default (printf "%s-tls" .name) }}
{{- $rules := printf `
- {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [%s]}
- {apiGroups: [""], resources: [secrets], verbs: [patch], resourceNames: [%s-tls]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, patch], resourceNames: [%s-ca]}` $secret .name .name }}
{{ include "confcom.access" (merge (dict "ingress" (list .port) "token" true "rules" $rules) .) }}
---
# Without data: the service writes its certificate here, and upgrades leave that alone.
apiVersion: v1
kind: Secret
metadata: {{- include "confcom.namespaced" (list .root .component (print .name "-tls")) | nindent 2 }}
type: Opaque
---
# Publishes the authority of that certificate.
apiVersion: v1
kind: ConfigMap
metadata: {{- include "confcom.namespaced" (list .root .component (print .name "-ca")) | nindent 2 }}
---
# The service changes some keys of its Secret and its ConfigMap, and nothing else of these objects.
{{ include "confcom.policy" (dict "root" .root "component" .component "name" (print .name "-own-data.confcom.dev")
  "rule" `{apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [secrets, configmaps]}`
  "account" .name "body" (include "policy.own-data" .root)) }}
{{- with .own.storage.size }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{- include "confcom.namespaced" (list $.root $.component $.claim $.claimAnnotations) | nindent 2 }}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: {{ . | quote }}}}
  {{- with $.own.storage.className }}
  storageClassName: {{ . | quote }}
  {{- end }}
{{- end }}
---
apiVersion: v1
kind: Service
metadata: {{- include "confcom.namespaced" (list .root .component .name) | nindent 2 }}
spec:
  selector: {{ include "confcom.selector" .component }}
  ports: [{name: https, port: {{ .servicePort }}, targetPort: https, protocol: TCP}]
---
{{- /* A volume is in one place at a time: a successor waits until its predecessor has ended. */}}
{{- $rolling := "{type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}" }}
{{- $strategy := ternary $rolling "{type: Recreate}" (empty .own.storage.size) }}
{{ include "confcom.deployment" (list .root .component .name .own 1 $strategy) }}
{{- end }}

{{/* What its container has beside its own settings. The same dict, with prefix, of its settings' variables. */}}
{{- define "confcom.tlsSettings" -}}
- {name: {{ .prefix }}_LISTEN, value: "[::]:{{ .port }}"}
- {name: {{ .prefix }}_TLS_SECRET, value: {{ .own.tlsSecret | default (print .name "-tls") | quote }}}
- {name: {{ .prefix }}_TLS_GIVEN, value: {{ not (empty .own.tlsSecret) | quote }}}
- {name: {{ .prefix }}_TLS_CONFIG_MAP, value: {{ .name }}-ca}
- {name: {{ .prefix }}_TLS_NAMESPACE, value: confcom-system}
- {name: {{ .prefix }}_TLS_SERVICE, value: {{ .name }}}
{{- end }}

{{- define "confcom.tlsContainer" -}}
ports:
- {name: https, containerPort: {{ .port }}, protocol: TCP}
resources: {{- toYaml .own.resources | nindent 2 }}
securityContext: {{- include "confcom.confined" dict | nindent 2 }}
{{ include "confcom.probes" "https" }}
{{- end }}

{{- define "confcom.tlsVolumes" -}}
- {name: tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- if .own.storage.size }}
- {name: store, persistentVolumeClaim: {claimName: {{ .claim }}}}
{{- else }}
- {name: store, emptyDir: {sizeLimit: 1Gi}}
{{- end }}
{{- end }}

{{- define "policy.own-data" -}}
variables:
{{- include "confcom.policyMaps" (dict "whole" "object" "paths" (list "metadata" "data")) }}
validations:
{{ include "confcom.kept" (list "object" "metadata" "data") }}
{{ include "confcom.keptMetadata" list }}
{{ include "confcom.kept" (list "data" "tls.crt" "tls.key" "tls.since" "next.crt" "next.key" "ca.crt" "ca-certificates.crt") }}
{{- end }}
