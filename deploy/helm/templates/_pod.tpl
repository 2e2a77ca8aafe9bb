{{/* A component's DaemonSet or Deployment. Dict: its description, as in _component.tpl; root. */}}
{{- define "confcom.workload" -}}
{{- $rolling := dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" 1 "maxUnavailable" 0) -}}
apiVersion: apps/v1
kind: {{ ternary "Deployment" "DaemonSet" (hasKey . "replicas") }}
metadata: {{- include "confcom.namespaced" (list .root .component .name .own.annotations .own.labels) | nindent 2 }}
spec:
  selector: {matchLabels: {{ include "confcom.selector" .component }}}
  {{- if hasKey . "replicas" }}
  replicas: {{ .replicas }}
  strategy: {{ .strategy | default $rolling | toJson }}
  {{- else }}
  # A successor starts beside each pod, which ends once that is ready.
  updateStrategy: {{ toJson $rolling }}
  minReadySeconds: 2
  {{- end }}
  revisionHistoryLimit: 3
  template:
    metadata:
      labels:
        {{- include "confcom.podLabels" .component | nindent 8 }}
        {{- with .own.podLabels }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- with .own.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec: {{- include "confcom.pod" . | nindent 6 }}
{{- end }}

{{/* A Job of an account. Dict: root, component, name, of the account; job, its name; annotations; spec, further fields. */}}
{{- define "confcom.job" -}}
apiVersion: batch/v1
kind: Job
metadata: {{- include "confcom.namespaced" (list .root .component .job .annotations) | nindent 2 }}
spec:
  {{- toYaml .spec | nindent 2 }}
  template:
    metadata:
      labels: {{- include "confcom.podLabels" .component | nindent 8 }}
    spec:
      restartPolicy: {{ .restartPolicy | default "Never" }}
      {{- include "confcom.pod" (merge (dict "own" (dict "priorityClassName" "system-cluster-critical")) .) | nindent 6 }}
{{- end }}

{{/* The pod of a component or a Job. The container of a component has ports and probes; else there is a task. */}}
{{- define "confcom.pod" -}}
{{- $own := .own -}}
serviceAccountName: {{ .name }}
automountServiceAccountToken: {{ include "confcom.asksApi" . }}
priorityClassName: {{ $own.priorityClassName | default "" | quote }}
enableServiceLinks: false
dnsPolicy: {{ ternary "ClusterFirst" "Default" (has "53" (.egress | default list | toStrings)) }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
{{- $anyNode := or (hasKey . "replicas") (hasKey . "job") }}
{{- $nodes := ternary (dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64") dict $anyNode }}
{{- with merge (dict) ($own.nodeSelector | default dict) $nodes }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := ternary dict (include "confcom.sgxAffinity" .root | fromYaml) $anyNode }}
{{- with mustMergeOverwrite $affinity ($own.affinity | default dict) }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
- {key: CriticalAddonsOnly, operator: Exists}
{{- if not (hasKey . "replicas") }}{{ include "confcom.sgxTolerations" .root | nindent 0 }}{{ end }}
{{- with $own.tolerations }}{{ toYaml . | nindent 0 }}{{ end }}
{{- if $anyNode }}
securityContext: {fsGroup: 65532}
terminationGracePeriodSeconds: 30
{{- end }}
{{- if hasKey . "replicas" }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector: {matchLabels: {{ include "confcom.selector" .component }}}
{{- end }}
{{- with .pod }}{{ toYaml . | nindent 0 }}{{ end }}
{{- with .init }}
initContainers: {{- range . }}
- {{- include "confcom.task" (list $.root .) | nindent 2 }}
{{- end }}
{{- end }}
containers:
- {{- if .ports }}{{ include "confcom.main" . | nindent 2 }}{{ else }}{{ include "confcom.task" (list .root .task) | nindent 2 }}{{ end }}
volumes:
{{- if .ports }}
- {name: tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
{{- end }}
{{- range .volumes }}
{{- if .secret }}{{ $_ := set .secret "defaultMode" 0440 }}{{ end }}
- {{ omit . "at" "writable" | toJson }}
{{- else }}{{ if not .ports }} []{{ end }}
{{- end }}
{{- end }}

{{/* The container of a component. */}}
{{- define "confcom.main" -}}
{{- $given := list }}{{ range .own.extraEnv }}{{ $given = append $given .name }}{{ end }}
{{- if ne (len $given) (len (uniq $given)) }}
{{- fail (printf "extraEnv of the %s names a variable twice: %s" .component (join ", " $given)) }}
{{- end -}}
name: {{ .component }}
{{ include "confcom.container" (list .root .confined) }}
args: {{ .args | default (list .component) | toJson }}
env:
{{- $prefix := .daemon | default .component | upper | replace "-" "_" | printf "CONFCOM_%s_" }}
{{- $settings := .settings }}
{{- range $port, $setting := dict "http" "HTTP" "https" "LISTEN" "tls" "HTTPS" }}
{{- with get $.ports $port }}{{ $_ := set $settings $setting (printf "[::]:%v" .) }}{{ end }}
{{- end }}
{{- $env := .env | default list }}
{{- range $name, $value := $settings }}{{ $env = append $env (dict "name" (print $prefix $name) "value" $value) }}{{ end }}
{{- range $env }}
{{- if not (has .name $given) }}
- {{ toJson . }}
{{- end }}
{{- end }}
{{- with .own.extraEnv }}{{ toYaml . | nindent 0 }}{{ end }}
ports:
{{- range $name, $port := .ports }}
- {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
{{- end }}
{{- $devices := .devices | default dict }}
{{- $resources := dict "requests" $devices "limits" (deepCopy $devices) }}
resources: {{- merge $resources (.own.resources | default dict) | toYaml | nindent 2 }}
{{- $asked := ternary (dict "port" "http") (dict "port" "https" "scheme" "HTTPS") (hasKey .ports "http") }}
startupProbe: {{ include "confcom.probe" (list $asked "/healthz" 2 60) }}
livenessProbe: {{ include "confcom.probe" (list $asked "/healthz" 20 3) }}
readinessProbe: {{ include "confcom.probe" (list $asked "/readyz" 5 3) }}
volumeMounts:
- {name: tmp, mountPath: /tmp}
{{- range .volumes }}
{{- if .at }}
- {{ include "confcom.mount" . }}
{{- end }}
{{- end }}
{{- with .mounts }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{/* A small container that ends. List: root; name, command, args, env, mounts, confined. */}}
{{- define "confcom.task" -}}
{{- $task := index . 1 -}}
{{ include "confcom.container" (list (index . 0) $task.confined) }}
resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 256Mi}}
volumeMounts: {{- range $task.mounts }}
- {{ include "confcom.mount" . }}
{{- else }} []
{{- end }}
{{ omit $task "confined" "mounts" | toYaml }}
{{- end }}

{{/* The mount of a volume, at `at`, for reading unless it is `writable`. */}}
{{- define "confcom.mount" -}}
{{- $readOnly := dict "readOnly" true "recursiveReadOnly" "IfPossible" }}
{{- merge (dict "name" .name "mountPath" .at) (ternary dict $readOnly (.writable | default false)) | toJson }}
{{- end }}

{{/* What every container has. List: root; its security context, as for confcom.confined. */}}
{{- define "confcom.container" -}}
{{- $root := index . 0 -}}
image: {{ include "confcom.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext: {{- include "confcom.confined" (index . 1 | default dict) | nindent 2 }}
{{- end }}

{{/* A security context without privileges. Dict: root, for user 0; add, capabilities; seccomp and appArmor profiles. */}}
{{- define "confcom.confined" -}}
{{- $user := ternary 0 65532 (hasKey . "root") -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsUser: {{ $user }}
runAsGroup: {{ $user }}
runAsNonRoot: {{ ne $user 0 }}
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
{{- if hasPrefix "localhost/" (.seccomp | default "") }}
seccompProfile: {type: Localhost, localhostProfile: {{ trimPrefix "localhost/" .seccomp }}}
{{- else }}
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- with .appArmor }}
appArmorProfile: {type: {{ . }}}
{{- end }}
{{- end }}

{{/* List: port; path, seconds between, failures. */}}
{{- define "confcom.probe" -}}
{httpGet: {{ merge (dict "path" (index . 1)) (index . 0) | toJson }}, periodSeconds: {{ index . 2 }}, failureThreshold: {{ index . 3 }}, timeoutSeconds: 5}
{{- end }}

{{/* Nodes with any of three labels are SGX nodes. */}}
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

{{/* Taints that usually set SGX nodes apart, and those of the values. */}}
{{- define "confcom.sgxTolerations" -}}
- {key: kubernetes.azure.com/sgx_epc_mem_in_MiB, operator: Exists}
- {key: confcom.dev/sgx, operator: Exists}
- {key: sgx.intel.com/epc, operator: Exists}
- {key: alibabacloud.com/sgx_epc_MiB, operator: Exists}
{{- with .Values.tolerations }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}
