{{/*
A component's DaemonSet or Deployment. Dict: root, component, name; own, its values; replicas and strategy of a
Deployment. Its pod is what confcom.pod makes of the template pod.COMPONENT.
*/}}
{{- define "confcom.workload" -}}
{{- $own := .own -}}
apiVersion: apps/v1
kind: {{ ternary "Deployment" "DaemonSet" (hasKey . "replicas") }}
metadata: {{- include "confcom.namespaced" (list .root .component .name $own.annotations $own.labels) | nindent 2 }}
spec:
  selector: {matchLabels: {{ include "confcom.selector" .component }}}
  {{- if hasKey . "replicas" }}
  replicas: {{ .replicas | int }}
  strategy: {{ .strategy | default "{type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}" }}
  {{- else }}
  # A successor starts beside each pod, which ends once that is ready.
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  minReadySeconds: 2
  {{- end }}
  revisionHistoryLimit: 3
  template:
    metadata:
      labels:
        {{- include "confcom.podLabels" .component | nindent 8 }}
        {{- with $own.podLabels }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- with $own.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec: {{- include "confcom.pod" . | nindent 6 }}
{{- end }}

{{/*
Completes the pod of the template pod.COMPONENT, in YAML. Every pod gets its placement; every container image, pull
policy and security context, unless it has its own; a first container with ports also probes, at its port http or else
https, and resources and variables of the values. A volume may have `at`, where that container mounts it, and
`readOnly`. The dict of confcom.workload.
*/}}
{{- define "confcom.pod" -}}
{{- $own := .own }}
{{- $pod := include (print "pod." .component) .root | fromYaml }}
{{- with $pod.Error }}{{ fail (printf "pod.%s: %s" $.component .) }}{{ end }}
{{- $main := first $pod.containers }}
{{- $usual := include "confcom.container" .root | fromYaml }}
{{- range concat ($pod.initContainers | default list) (list $main) }}
{{- $_ := merge . (omit $usual "securityContext") }}
{{- if not .securityContext }}{{ $_ := set . "securityContext" $usual.securityContext }}{{ end }}
{{- end }}
{{- if $main.ports }}
{{- $_ := set $main "resources" (mustMergeOverwrite (deepCopy ($own.resources | default dict)) ($main.resources | default dict)) }}
{{- $given := list }}{{ range $own.extraEnv }}{{ $given = append $given .name }}{{ end }}
{{- if ne (len $given) (len (uniq $given)) }}
{{- fail (printf "extraEnv of the %s names a variable twice: %s" .component (join ", " $given)) }}
{{- end }}
{{- $env := list }}{{ range $main.env }}{{ if not (has .name $given) }}{{ $env = append $env . }}{{ end }}{{ end }}
{{- $_ := set $main "env" (concat $env ($own.extraEnv | default list)) }}
{{- $port := "https" }}{{ range $main.ports }}{{ if eq .name "http" }}{{ $port = "http" }}{{ end }}{{ end }}
{{- $_ := merge $main (include "confcom.probes" $port | fromYaml) }}
{{- end }}
{{- $mounts := $main.volumeMounts | default list }}
{{- range $pod.volumes }}
{{- if .at }}
{{- $how := ternary (dict "readOnly" true "recursiveReadOnly" "IfPossible") dict (.readOnly | default false) }}
{{- $mounts = append $mounts (merge (dict "name" .name "mountPath" .at) $how) }}
{{- end }}
{{- $_ := unset (unset . "at") "readOnly" }}
{{- end }}
{{- if $mounts }}{{ $_ := set $main "volumeMounts" $mounts }}{{ end }}
{{- $place := ternary "confcom.anyNode" "confcom.sgxNode" (hasKey . "replicas") }}
{{- $spec := include $place . | fromYaml }}
{{- range $key, $value := $pod }}{{ $_ := set $spec $key $value }}{{ end }}
{{- toYaml $spec }}
{{- end }}

{{/* What the pod of a Deployment has. The dict of confcom.workload. */}}
{{- define "confcom.anyNode" -}}
{{- include "confcom.everyPod" (list .root .name .own.priorityClassName) }}
automountServiceAccountToken: true
securityContext: {fsGroup: 65532}
terminationGracePeriodSeconds: 30
nodeSelector:
  kubernetes.io/os: linux
  kubernetes.io/arch: amd64
  {{- with .own.nodeSelector }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
- {key: CriticalAddonsOnly, operator: Exists}
{{- with .own.tolerations }}{{ toYaml . | nindent 0 }}{{ end }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector: {matchLabels: {{ include "confcom.selector" .component }}}
{{- end }}

{{/* What the pod of a DaemonSet has: it runs on nodes with any of three labels. The same dict. */}}
{{- define "confcom.sgxNode" -}}
{{- include "confcom.everyPod" (list .root .name .own.priorityClassName) }}
affinity: {{- mustMergeOverwrite (include "confcom.sgxAffinity" .root | fromYaml) (deepCopy (.own.affinity | default dict)) | toYaml | nindent 2 }}
{{- with .own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
{{- include "confcom.sgxTolerations" .root | nindent 0 }}
{{- with .own.tolerations }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{- define "confcom.sgxAffinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    {{- range list "confcom.dev/sgx" "feature.node.kubernetes.io/cpu-security.sgx.enabled" "intel.feature.node.kubernetes.io/sgx" }}
    - matchExpressions:
      - {key: {{ . }}, operator: In, values: ["true"]}
      - {key: kubernetes.io/os, operator: In, values: [linux]}
      - {key: kubernetes.io/arch, operator: In, values: [amd64]}
      {{- range $key, $value := $.Values.nodeSelector }}
      - {key: {{ $key | quote }}, operator: In, values: [{{ $value | quote }}]}
      {{- end }}
    {{- end }}
{{- end }}

{{- define "confcom.sgxTolerations" -}}
- {key: kubernetes.azure.com/sgx_epc_mem_in_MiB, operator: Exists}
- {key: confcom.dev/sgx, operator: Exists}
- {key: sgx.intel.com/epc, operator: Exists}
- {key: alibabacloud.com/sgx_epc_MiB, operator: Exists}
- {key: CriticalAddonsOnly, operator: Exists}
{{- with .Values.tolerations }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{/* What every pod has. List: root, service account, priority class; DNS policy, if it asks by names of the cluster. */}}
{{- define "confcom.everyPod" }}
serviceAccountName: {{ index . 1 }}
priorityClassName: {{ index . 2 | default "" | quote }}
dnsPolicy: {{ index (append . "Default") 3 }}
enableServiceLinks: false
{{- with (index . 0).Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What every container has. */}}
{{- define "confcom.container" -}}
image: {{ include "confcom.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext: {{ include "confcom.confined" dict }}
{{- end }}

{{/* A container's security context without privileges, as JSON. Dict: root, for user 0; add, capabilities; profile, of seccomp. */}}
{{- define "confcom.confined" -}}
{{- $user := ternary 0 65532 (hasKey . "root") }}
{{- $capabilities := dict "drop" (list "ALL") }}
{{- with .add }}{{ $_ := set $capabilities "add" . }}{{ end }}
{{- $seccomp := dict "type" "RuntimeDefault" }}
{{- if hasPrefix "localhost/" (toString .profile) }}
{{- $seccomp = dict "type" "Localhost" "localhostProfile" (trimPrefix "localhost/" .profile) }}
{{- end }}
{{- dict "allowPrivilegeEscalation" false "privileged" false "readOnlyRootFilesystem" true "runAsUser" $user
  "runAsGroup" $user "runAsNonRoot" (ne $user 0) "capabilities" $capabilities "seccompProfile" $seccomp | toJson }}
{{- end }}

{{/* Probes at /healthz and /readyz of the port `http`, or over TLS of `https`. */}}
{{- define "confcom.probes" -}}
{{- $port := printf "port: %s%s" . (ternary ", scheme: HTTPS" "" (eq . "https")) -}}
startupProbe: {httpGet: {path: /healthz, {{ $port }}}, periodSeconds: 2, failureThreshold: 60, timeoutSeconds: 5}
livenessProbe: {httpGet: {path: /healthz, {{ $port }}}, periodSeconds: 20, failureThreshold: 3, timeoutSeconds: 5}
readinessProbe: {httpGet: {path: /readyz, {{ $port }}}, periodSeconds: 5, failureThreshold: 3, timeoutSeconds: 5}
{{- end }}
