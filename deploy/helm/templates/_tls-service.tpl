{{/*
A service over TLS with a store: its rights, its certificate, volume, Service and Deployment. Dict: root, component, name;
own, its values; port, where it listens; servicePort; egress; budget; claim, of its volume, and claimAnnotations; prefix,
of its variables; migrates, the variable of the command that changes a database's schema.
With a database it has no volume and may have several pods.
*/}}
{{- define "confcom.tlsService" -}}
{{- $tls := print .name "-tls" }}{{ $ca := print .name "-ca" }}
{{- $rules := printf `
- {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [%s]}
- {apiGroups: [""], resources: [secrets], verbs: [patch], resourceNames: [%s]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, patch], resourceNames: [%s]}` (.own.tlsSecret | default $tls) $tls $ca }}
{{- /* A volume is in one place at a time: a successor waits until its predecessor has ended. */}}
{{- $size := include "confcom.volumeSize" .own }}
{{- $strategy := ternary "{type: Recreate}" "" (ne $size "") }}
{{- $replicas := ternary 1 .own.replicas (empty .own.database.secret) }}
{{- $it := dict "ingress" (list .port) "token" true "rules" $rules "replicas" $replicas "strategy" $strategy }}
{{ include "confcom.component" (merge $it .) }}
---
{{ include "confcom.ownData" (merge (dict "secret" $tls "configMap" $ca) .) }}
{{- if $size }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{- include "confcom.namespaced" (list .root .component .claim .claimAnnotations) | nindent 2 }}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: {{ quote $size }}}}
  {{- with .own.storage.className }}
  storageClassName: {{ . | quote }}
  {{- end }}
{{- end }}
{{- if .own.database.secret }}
---
{{ include "confcom.migration" . }}
{{- end }}
{{- end }}

{{/*
A Secret and a ConfigMap without data: the component writes its certificate or CA there, and upgrades leave that alone.
It may change some keys of these objects and nothing else. Dict: that of the component; secret, configMap, their names.
*/}}
{{- define "confcom.ownData" -}}
apiVersion: v1
kind: Secret
metadata: {{- include "confcom.namespaced" (list .root .component .secret) | nindent 2 }}
type: Opaque
---
apiVersion: v1
kind: ConfigMap
metadata: {{- include "confcom.namespaced" (list .root .component .configMap) | nindent 2 }}
---
{{ include "confcom.policy" (merge (dict "policy" "own-data") .) }}
{{- end }}

{{/* The size of the volume of these values; empty: there is none, as with a database. */}}
{{- define "confcom.volumeSize" -}}
{{- if not .database.secret }}{{ .storage.size }}{{ end }}
{{- end }}

{{/* Settings of its certificate; how long a pod that has a successor answers after SIGTERM. The dict of the service. */}}
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

{{/* Where its store is: a file, or a database. The dict of the service. */}}
{{- define "confcom.storeSettings" -}}
{{- if .own.database.secret }}
{{- include "confcom.database" (list .own (print .prefix "_STORE") "url") }}
{{- else -}}
- {name: {{ .prefix }}_STORE, value: /var/lib/confcom/{{ .component }}.sqlite}
{{- end }}
{{- end }}

{{/* The address of a database, and the authority of its certificate. List: the values; variable; key of the Secret. */}}
{{- define "confcom.database" -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ (index . 0).database.secret | quote }}, key: {{ index . 2 }}}}
- {name: PGSSLROOTCERT, value: /etc/confcom/database/ca.crt}
{{- end }}

{{/* /tmp, its volume or a folder of the pod, and the authority of its database. The dict of the service. */}}
{{- define "confcom.tlsVolumes" -}}
- {name: tmp, at: /tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- if include "confcom.volumeSize" .own }}
- {name: store, at: /var/lib/confcom, persistentVolumeClaim: {claimName: {{ .claim }}}}
{{- else }}
- {name: store, at: /var/lib/confcom, emptyDir: {sizeLimit: 1Gi}}
{{- end }}
{{- with .own.database.secret }}
- name: database
  at: /etc/confcom/database
  readOnly: true
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}

{{/* A Job that brings the schema to the newest revision; its name changes with what it runs. The dict of the service. */}}
{{- define "confcom.migration" -}}
{{- $component := print .component "-migration" }}
{{- $name := print .name "-migration" }}
{{- $secret := quote .own.database.secret }}
{{- $runs := concat (list (include "confcom.image" .root) .own.database.secret) (.root.Values.image.pullSecrets | default list) -}}
{{ include "confcom.access" (dict "root" .root "component" $component "name" $name "token" false
  "egress" (list (list 53 .own.database.port))) }}
---
apiVersion: batch/v1
kind: Job
metadata: {{- include "confcom.namespaced" (list .root $component (printf "%s-%s" $name (join "\n" $runs | sha256sum | trunc 8))) | nindent 2 }}
spec:
  backoffLimit: 20
  template:
    metadata:
      labels: {{- include "confcom.podLabels" $component | nindent 8 }}
    spec:
      {{- include "confcom.everyPod" (list .root $name "system-cluster-critical" "ClusterFirst") | nindent 6 }}
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
        {{- include "confcom.database" (list .own .migrates "owner-url") | nindent 8 }}
        - name: ROLE
          valueFrom: {secretKeyRef: {name: {{ $secret }}, key: role}}
        resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 256Mi}}
        volumeMounts: [{name: database, mountPath: /etc/confcom/database, readOnly: true, recursiveReadOnly: IfPossible}]
      volumes:
      - name: database
        secret: {secretName: {{ $secret }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
