{{/*
A service over TLS, one pod with a volume: its rights, its certificate, volume, Service and Deployment.
Dict: root, component, name; own, its values; port, where it listens; servicePort; egress; claim, of its volume, and
claimAnnotations.
*/}}
{{- define "confcom.tlsService" -}}
{{- $rules := printf `
- {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [%s]}
- {apiGroups: [""], resources: [secrets], verbs: [patch], resourceNames: [%s-tls]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, patch], resourceNames: [%s-ca]}` (.own.tlsSecret | default (print .name "-tls")) .name .name }}
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
{{ include "confcom.policy" (merge (dict "policy" "own-data") .) }}
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
{{ include "confcom.httpsService" (list .root .component .name .servicePort) }}
---
{{- /* A volume is in one place at a time: a successor waits until its predecessor has ended. */}}
{{ include "confcom.workload" (merge (dict "replicas" 1 "strategy" (ternary "" "{type: Recreate}" (empty .own.storage.size))) .) }}
{{- end }}

{{/* Settings of its certificate. Dict: prefix, of the variables; name; port; own. */}}
{{- define "confcom.tlsSettings" -}}
- {name: {{ .prefix }}_LISTEN, value: "[::]:{{ .port }}"}
- {name: {{ .prefix }}_TLS_SECRET, value: {{ .own.tlsSecret | default (print .name "-tls") | quote }}}
- {name: {{ .prefix }}_TLS_GIVEN, value: {{ not (empty .own.tlsSecret) | quote }}}
- {name: {{ .prefix }}_TLS_CONFIG_MAP, value: {{ .name }}-ca}
- {name: {{ .prefix }}_TLS_NAMESPACE, value: confcom-system}
- {name: {{ .prefix }}_TLS_SERVICE, value: {{ .name }}}
{{- end }}

{{/* Its volume, and /tmp. Dict: claim; own. */}}
{{- define "confcom.tlsVolumes" -}}
- {name: tmp, at: /tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- if .own.storage.size }}
- {name: store, at: /var/lib/confcom, persistentVolumeClaim: {claimName: {{ .claim }}}}
{{- else }}
- {name: store, at: /var/lib/confcom, emptyDir: {sizeLimit: 1Gi}}
{{- end }}
{{- end }}

{{/* The authority of the collateral service's certificate. With the key named, a pod waits until it is published. */}}
{{- define "confcom.collateralCa" -}}
- name: collateral-ca
  at: {{ . }}
  readOnly: true
  configMap: {name: confcom-collateral-ca, items: [{key: ca-certificates.crt, path: ca-certificates.crt}]}
{{- end }}

{{- define "policy.own-data" -}}
rule: {apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [secrets, configmaps]}
variables:
{{- include "confcom.policyMaps" (dict "whole" "object" "paths" (list "metadata" "data")) }}
validations:
{{- include "confcom.kept" (list (list "object" "metadata" "data") (list "metadata")
  (list "data" "tls.crt" "tls.key" "tls.since" "next.crt" "next.key" "ca.crt" "ca-certificates.crt")) }}
{{- end }}
