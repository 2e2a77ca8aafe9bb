{{/* Reference of the image of every component. */}}
{{- define "confcom.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- with $image.tag | default (ternary "" .Chart.AppVersion (ne $image.digest "")) }}:{{ . }}{{ end }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Labels that select a component's pods. */}}
{{- define "confcom.selector" -}}
{app.kubernetes.io/part-of: confcom, app.kubernetes.io/component: {{ . }}}
{{- end }}

{{- define "confcom.podLabels" -}}
app.kubernetes.io/part-of: confcom
app.kubernetes.io/managed-by: confcom-addon
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Metadata of an object of the whole cluster. List: root, component, name; annotations and further labels, if any. */}}
{{- define "confcom.global" -}}
{{- $root := index . 0 }}{{ $more := concat . (list "" "") -}}
name: {{ index . 2 | quote }}
labels:
  {{- include "confcom.podLabels" (index . 1) | nindent 2 }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | quote }}
  {{- with index $more 4 }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with index $more 3 }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The same for an object in the add-on's namespace. */}}
{{- define "confcom.namespaced" -}}
namespace: confcom-system
{{ include "confcom.global" . }}
{{- end }}

{{/*
What a component may reach and do: network policy, service account, roles and their bindings. Dict: root, component,
name; ingress, ports that are open to all; called, a port that is open to the API server's addresses alone, where these
are given; egress, lists of ports; token, whether its pods may ask the API; rules in the namespace and clusterRules (YAML),
if it has any; annotations.
*/}}
{{- define "confcom.access" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "confcom.namespaced" (list .root .component .name .annotations) | nindent 2 }}
spec:
  podSelector: {matchLabels: {{ include "confcom.selector" .component }}}
  policyTypes: [Ingress, Egress]
  ingress: {{- range .ingress }}
  - ports: [{port: {{ . }}, protocol: TCP}]
  {{- else }} []
  {{- end }}
  {{- with .called }}
  - ports: [{port: {{ . }}, protocol: TCP}]
    {{- with $.root.Values.apiServer.addresses }}
    from: {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
    {{- end }}
  {{- end }}
  egress: {{- range compact .egress }}
  - ports: {{- range . }}
    - {port: {{ . | int }}, protocol: TCP}
    {{- end }}
    {{- if has 53 . }}
    - {port: 53, protocol: UDP}
    {{- end }}
  {{- else }} []
  {{- end }}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "confcom.namespaced" (list .root .component .name .annotations) | nindent 2 }}
automountServiceAccountToken: {{ .token }}
{{- range $kind, $rules := dict "Role" .rules "ClusterRole" .clusterRules }}
{{- if $rules }}
{{- $name := ternary $.name (printf "confcom:%s" $.name) (eq $kind "Role") }}
{{- $place := ternary "confcom.namespaced" "confcom.global" (eq $kind "Role") }}
{{- $metadata := include $place (list $.root $.component $name $.annotations) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata: {{- $metadata | nindent 2 }}
rules: {{- $rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata: {{- $metadata | nindent 2 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ $kind }}, name: {{ $name | quote }}}
subjects:
- {kind: ServiceAccount, name: {{ $.name }}, namespace: confcom-system}
{{- end }}
{{- end }}
{{- end }}

{{/* A DaemonSet on SGX nodes, whose pod is the template pod.COMPONENT. List: root, component, name, the component's values. */}}
{{- define "confcom.daemonSet" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $name := index . 2 }}{{ $own := index . 3 -}}
apiVersion: apps/v1
kind: DaemonSet
metadata: {{- include "confcom.namespaced" (list $root $component $name $own.annotations $own.labels) | nindent 2 }}
spec:
  selector: {matchLabels: {{ include "confcom.selector" $component }}}
  # A successor starts beside each pod, which ends once that is ready.
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  minReadySeconds: 2
  revisionHistoryLimit: 3
  template:
    {{- include "confcom.podMetadata" (list $component $own) | nindent 4 }}
    spec:
      {{- include "confcom.pod" (list $root $name $own) | nindent 6 }}
      {{- with $own.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity: {{- mustMergeOverwrite (include "confcom.sgxNodes" $root | fromYaml) (deepCopy ($own.affinity | default dict)) | toYaml | nindent 8 }}
      tolerations:
      {{- include "confcom.sgxTolerations" $root | nindent 6 }}
      {{- with $own.tolerations }}{{ toYaml . | nindent 6 }}{{ end }}
      {{- include (printf "pod.%s" $component) $root | nindent 6 }}
{{- end }}

{{/* A Deployment on any node. List: as above, then replicas and strategy. */}}
{{- define "confcom.deployment" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $name := index . 2 }}{{ $own := index . 3 -}}
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "confcom.namespaced" (list $root $component $name $own.annotations $own.labels) | nindent 2 }}
spec:
  replicas: {{ index . 4 | int }}
  selector: {matchLabels: {{ include "confcom.selector" $component }}}
  strategy: {{ index . 5 }}
  revisionHistoryLimit: 3
  template:
    {{- include "confcom.podMetadata" (list $component $own) | nindent 4 }}
    spec:
      {{- include "confcom.pod" (list $root $name $own) | nindent 6 }}
      automountServiceAccountToken: true
      securityContext: {fsGroup: 65532}
      terminationGracePeriodSeconds: 30
      nodeSelector:
        kubernetes.io/os: linux
        kubernetes.io/arch: amd64
        {{- with $own.nodeSelector }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- with $own.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      tolerations:
      - {key: CriticalAddonsOnly, operator: Exists}
      {{- with $own.tolerations }}{{ toYaml . | nindent 6 }}{{ end }}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {matchLabels: {{ include "confcom.selector" $component }}}
      {{- include (printf "pod.%s" $component) $root | nindent 6 }}
{{- end }}

{{- define "confcom.podMetadata" -}}
metadata:
  labels:
    {{- include "confcom.podLabels" (index . 0) | nindent 4 }}
    {{- with (index . 1).podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with (index . 1).podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What every pod has. List: root, service account, the component's values. */}}
{{- define "confcom.pod" -}}
serviceAccountName: {{ index . 1 }}
priorityClassName: {{ (index . 2).priorityClassName }}
enableServiceLinks: false
{{- with (index . 0).Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Affinity to SGX nodes: those with any of three labels. */}}
{{- define "confcom.sgxNodes" -}}
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

{{/* What every container has. List: root, name. */}}
{{- define "confcom.container" -}}
name: {{ index . 1 }}
image: {{ include "confcom.image" (index . 0) | quote }}
imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* A container's security context without privileges. Dict: root, for user 0; add, capabilities; profile, of seccomp. */}}
{{- define "confcom.confined" -}}
{{- $user := ternary 0 65532 (hasKey . "root") -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsUser: {{ $user }}
runAsGroup: {{ $user }}
runAsNonRoot: {{ ne $user 0 }}
capabilities: {drop: [ALL]{{ with .add }}, add: {{ toJson . }}{{ end }}}
{{- if hasPrefix "localhost/" (toString .profile) }}
seccompProfile: {type: Localhost, localhostProfile: {{ trimPrefix "localhost/" .profile | quote }}}
{{- else }}
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- end }}

{{/* Probes at /healthz and /readyz of the port `http`, or over TLS of `https`. */}}
{{- define "confcom.probes" -}}
{{- $port := printf "port: %s%s" . (ternary ", scheme: HTTPS" "" (eq . "https")) -}}
startupProbe: {httpGet: {path: /healthz, {{ $port }}}, periodSeconds: 2, failureThreshold: 60, timeoutSeconds: 5}
livenessProbe: {httpGet: {path: /healthz, {{ $port }}}, periodSeconds: 20, failureThreshold: 3, timeoutSeconds: 5}
readinessProbe: {httpGet: {path: /readyz, {{ $port }}}, periodSeconds: 5, failureThreshold: 3, timeoutSeconds: 5}
{{- end }}

{{/* Volumes that are paths of the host, and their mounts. Each: name, path, type; at, in the container; readOnly. */}}
{{- define "confcom.hostVolumes" -}}
{{- range . }}
- {name: {{ .name }}, hostPath: {path: {{ .path }}, type: {{ .type }}}}
{{- end }}
{{- end }}

{{- define "confcom.hostMounts" -}}
{{- range . }}
{{- $at := .at | default .path }}
- {{ if .readOnly }}{{ include "confcom.readOnly" (list .name $at) }}{{ else }}{name: {{ .name }}, mountPath: {{ $at }}}{{ end }}
{{- end }}
{{- end }}

{{- define "confcom.readOnly" -}}
{name: {{ index . 0 }}, mountPath: {{ index . 1 }}, readOnly: true, recursiveReadOnly: IfPossible}
{{- end }}

{{/*
An admission policy, and what puts it in force: it restricts what RBAC cannot express, such as fields, or a component's
own node. Dict: root, component, name; rule; account, whose requests it restricts, else those of all other namespaces;
body, variables and validations.
*/}}
{{- define "confcom.policy" -}}
{{- $metadata := include "confcom.global" (list .root .component .name .annotations) -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{- $metadata | nindent 2 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{{ .rule }}]
    {{- if not .account }}
    namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [confcom-system]}]}
    {{- end }}
  {{- with .account }}
  matchConditions:
  - {name: account, expression: "request.userInfo.username == 'system:serviceaccount:confcom-system:{{ . }}'"}
  {{- end }}
  {{- .body | nindent 2 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{- $metadata | nindent 2 }}
spec: {policyName: {{ .name }}, validationActions: [Deny]}
{{- end }}

{{/* CEL: the request comes from a pod on the node that the expression names. */}}
{{- define "confcom.ofOwnNode" -}}
{{- $claim := "authentication.kubernetes.io/node-name" -}}
{{ printf "'%s' in request.userInfo.extra && request.userInfo.extra['%s'] == [%s]" $claim $claim . | quote }}
{{- end }}

{{/*
Variables of a policy: the object under a name, and maps in it under the last word of their path; with "Before" appended,
the same of the old object. Dict: whole, paths, old (CEL).
*/}}
{{- define "confcom.policyMaps" -}}
{{- range $suffix, $side := dict "" "object" "Before" (.old | default "oldObject") }}
- {name: {{ $.whole }}{{ $suffix }}, expression: {{ printf "dyn(%s)" $side | quote }}}
{{- range $path := $.paths }}
- name: {{ splitList "." $path | last }}{{ $suffix }}
  expression: {{ printf "dyn(%s.?%s.orValue({}))" $side (replace "." ".?" $path) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* A validation: of a map nothing changes but some keys. List: the map's variable, then the keys. */}}
{{- define "confcom.kept" -}}
{{- $name := first . }}{{ $keys := rest . }}{{ $new := printf "variables.%s" $name }}{{ $old := printf "%sBefore" $new -}}
{{- $in := printf "k in ['%s']" (join "', '" $keys) -}}
- expression: {{ printf "%s.all(k, %s || (k in %s && %s[k] == %s[k])) && %s.all(k, %s || k in %s)" $new $in $old $old $new $old $in $new | quote }}
  message: {{ printf "nothing of the %s may change but %s" $name (join ", " $keys) }}
{{- end }}

{{/* The same of the metadata, where the API server itself changes some. List: the keys. */}}
{{- define "confcom.keptMetadata" -}}
{{- include "confcom.kept" (concat (list "metadata") . (list "managedFields" "resourceVersion" "generation")) }}
{{- end }}

{{/* Settings as one word each, as `confcom addon` writes them. */}}
{{- define "confcom.integers" -}}
{{- $found := list }}{{ range . }}{{ $found = append $found (int64 .) }}{{ end }}{{ join "," $found }}
{{- end }}

{{- define "confcom.nodeSelectorText" -}}
{{- $found := list }}{{ range $key, $value := . }}{{ $found = append $found (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $found }}
{{- end }}

{{- define "confcom.tolerationsText" -}}
{{- $found := list -}}
{{- range . }}
{{- $value := ternary (printf "=%s" .value) "" (hasKey . "value") }}{{ $effect := ternary (printf ":%s" .effect) "" (hasKey . "effect") }}
{{- $found = append $found (printf "%s%s%s" (.key | default "*") $value $effect) }}
{{- end -}}
{{- join "," $found }}
{{- end }}

{{/* The port of an operator's own PCCS, if there is one, as a list. */}}
{{- define "confcom.collateralPorts" -}}
{{- if and (eq .Values.platform "intel") .Values.collateral.url (not .Values.collateral.enabled) -}}
[{{ regexFind ":[0-9]+$" (urlParse .Values.collateral.url).host | trimPrefix ":" | default "443" }}]
{{- else }}[]{{ end }}
{{- end }}

{{/* The authority of the collateral service's certificate. With the key named, a pod waits until it is published. */}}
{{- define "confcom.collateralCaVolume" -}}
- name: collateral-ca
  configMap: {name: confcom-collateral-ca, items: [{key: ca-certificates.crt, path: ca-certificates.crt}]}
{{- end }}

{{/* One pod at a time may be evicted; those that are not ready always. List: root, component, name. */}}
{{- define "confcom.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "confcom.namespaced" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {{ include "confcom.selector" (index . 1) }}}
  unhealthyPodEvictionPolicy: AlwaysAllow
{{- end }}

{{/* Where quote helpers get certification data: the collateral service, else an operator's PCCS, else an empty word. */}}
{{- define "confcom.collateralSource" -}}
{{- if .Values.collateral.enabled }}https://confcom-collateral.confcom-system.svc:8081
{{- else }}{{ splitList "/sgx/certification" .Values.collateral.url | first | trimSuffix "/" }}{{ end }}
{{- end }}

{{/* A CA, base64 in JSON: the one in the cluster, else a new one beside those that are trusted now. List: Secret, name, trusted. */}}
{{- define "confcom.ca" -}}
{{- $secret := lookup "v1" "Secret" "confcom-system" (index . 0) -}}
{{- if and $secret $secret.data -}}
{{- dict "certificate" (index $secret.data "tls.crt") "key" (index $secret.data "tls.key") "bundle" (index $secret.data "ca.crt") | toJson }}
{{- else -}}
{{- $made := genCA (index . 1) 3650 -}}
{{- dict "certificate" ($made.Cert | b64enc) "key" ($made.Key | b64enc) "bundle" (printf "%s%s" $made.Cert (index . 2) | b64enc) | toJson }}
{{- end }}
{{- end }}

{{/* Its Secret. List: root, component, name, the CA. */}}
{{- define "confcom.caSecret" -}}
{{- $ca := index . 3 -}}
apiVersion: v1
kind: Secret
metadata: {{- include "confcom.namespaced" (slice . 0 3) | nindent 2 }}
type: kubernetes.io/tls
data: {tls.crt: {{ $ca.certificate }}, tls.key: {{ $ca.key }}, ca.crt: {{ $ca.bundle }}}
{{- end }}
