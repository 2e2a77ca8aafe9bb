{{/*
A service over TLS, one pod with a volume: its rights, its certificate, volume, Service and Deployment.
Dict: root, component, name; own, its values; port, where it listens; servicePort; egress; claim, of its volume, and
claimAnnotations. With a database it has no volume and may have several pods.
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
{{- with include "confcom.volumeSize" .own }}
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
{{- $replicas := ternary (.own.replicas | default 1) 1 (ne "" ((.own.database).secret | default "")) }}
{{ include "confcom.workload" (merge (dict "replicas" $replicas "strategy" (ternary "" "{type: Recreate}" (empty (include "confcom.volumeSize" .own)))) .) }}
{{- end }}

{{/* The size of the volume of these values; empty: there is none, as with a database. */}}
{{- define "confcom.volumeSize" -}}
{{- if not (.database).secret }}{{ .storage.size }}{{ end }}
{{- end }}

{{/* Where its database is. Dict: variable, with the address; own; key, of the Secret. */}}
{{- define "confcom.databaseSettings" -}}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ .own.database.secret | quote }}, key: {{ .key }}}}
- {name: PGSSLROOTCERT, value: /etc/confcom/database/ca.crt}
{{- end }}

{{/* The authority of the database's certificate, of this Secret. */}}
{{- define "confcom.databaseVolume" -}}
- name: database
  at: /etc/confcom/database
  readOnly: true
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}

{{/*
A Job that brings the schema of the database to the newest revision; its name changes with what it runs.
Dict: root, component, name, own; variable, with the address for `confcom COMPONENT migrate`.
*/}}
{{- define "confcom.migration" -}}
{{- $component := print .component "-migration" }}
{{- $name := print .name "-migration" }}
{{- $secrets := concat (list (include "confcom.image" .root) .own.database.secret) (.root.Values.image.pullSecrets | default list) }}
{{- $volume := include "confcom.databaseVolume" .own.database.secret | fromYamlArray | first -}}
{{ include "confcom.access" (dict "root" .root "component" $component "name" $name "token" false
  "egress" (list (list 53 .own.database.port))) }}
---
apiVersion: batch/v1
kind: Job
metadata: {{- include "confcom.namespaced" (list .root $component (printf "%s-%s" $name (join "\n" $secrets | sha256sum | trunc 8))) | nindent 2 }}
spec:
  backoffLimit: 20
  template:
    metadata: {labels: {{ include "confcom.podLabels" $component | fromYaml | toJson }}}
    spec:
      {{- include "confcom.everyPod" (list .root $name "system-cluster-critical") | replace "dnsPolicy: Default" "dnsPolicy: ClusterFirst" | nindent 6 }}
      automountServiceAccountToken: false
      restartPolicy: OnFailure
      securityContext: {fsGroup: 65532}
      nodeSelector: {kubernetes.io/os: linux, kubernetes.io/arch: amd64}
      tolerations: [{key: CriticalAddonsOnly, operator: Exists}]
      containers:
      - name: task
        {{- include "confcom.container" .root | nindent 8 }}
        args: [{{ .component }}, migrate, --role, $(ROLE)]
        env:
        {{- include "confcom.databaseSettings" (merge (dict "key" "owner-url") .) | nindent 8 }}
        - name: ROLE
          valueFrom: {secretKeyRef: {name: {{ .own.database.secret | quote }}, key: role}}
        resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 256Mi}}
        volumeMounts: [{name: database, mountPath: /etc/confcom/database, readOnly: true, recursiveReadOnly: IfPossible}]
      volumes: [{{ omit $volume "at" "readOnly" | toJson }}]
{{- end }}

{{/* Settings of its certificate; how long a pod that has a successor answers after SIGTERM. Dict: prefix, of the variables; name; port; own. */}}
{{- define "confcom.tlsSettings" -}}
- {name: {{ .prefix }}_LISTEN, value: "[::]:{{ .port }}"}
- {name: {{ .prefix }}_TLS_SECRET, value: {{ .own.tlsSecret | default (print .name "-tls") | quote }}}
- {name: {{ .prefix }}_TLS_GIVEN, value: {{ not (empty .own.tlsSecret) | quote }}}
- {name: {{ .prefix }}_TLS_CONFIG_MAP, value: {{ .name }}-ca}
- {name: {{ .prefix }}_TLS_NAMESPACE, value: confcom-system}
- {name: {{ .prefix }}_TLS_SERVICE, value: {{ .name }}}
{{- if not (include "confcom.volumeSize" .own) }}
- {name: {{ .prefix }}_LEAVE_AFTER, value: "6"}
{{- end }}
{{- end }}

{{/* Its volume, and /tmp. Dict: claim; own. */}}
{{- define "confcom.tlsVolumes" -}}
- {name: tmp, at: /tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- if include "confcom.volumeSize" .own }}
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
