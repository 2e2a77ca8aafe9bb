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
A component: what it may reach and do, its Service and disruption budget, and its DaemonSet or Deployment.
Dict: that of confcom.access and of confcom.workload; servicePort, if it has a Service; budget, whether one pod at a time
may be evicted, and those that are not ready always.
*/}}
{{- define "confcom.component" -}}
{{ include "confcom.access" . }}
{{- with .servicePort }}
---
apiVersion: v1
kind: Service
metadata: {{- include "confcom.namespaced" (list $.root $.component $.name) | nindent 2 }}
spec:
  selector: {{ include "confcom.selector" $.component }}
  ports: [{name: https, port: {{ . }}, targetPort: https, protocol: TCP}]
{{- end }}
{{- if .budget }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "confcom.namespaced" (list .root .component .name) | nindent 2 }}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {{ include "confcom.selector" .component }}}
  unhealthyPodEvictionPolicy: AlwaysAllow
{{- end }}
---
{{ include "confcom.workload" . }}
{{- end }}

{{/*
What a component may reach and do: network policy, service account, roles and their bindings. Dict: root, component,
name; ingress, ports that are open to all; called, a port that is open to the API server's addresses alone, where these
are given; egress, lists of ports; token, whether its pods may ask the API; rules in the namespace and clusterRules, in
YAML, if it has any; annotations.
*/}}
{{- define "confcom.access" -}}
{{- $sources := list }}
{{- range .root.Values.apiServer.addresses }}{{ $sources = append $sources (dict "ipBlock" (dict "cidr" .)) }}{{ end -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "confcom.namespaced" (list .root .component .name .annotations) | nindent 2 }}
spec:
  podSelector: {matchLabels: {{ include "confcom.selector" .component }}}
  policyTypes: [Ingress, Egress]
  ingress:
  {{- range .ingress }}
  - ports: {{ include "confcom.ports" (list .) }}
  {{- else }}
  {{- if not .called }} []{{ end }}
  {{- end }}
  {{- with .called }}
  - ports: {{ include "confcom.ports" (list .) }}
    {{- with $sources }}
    from: {{ toJson . }}
    {{- end }}
  {{- end }}
  egress:
  {{- range compact .egress }}
  - ports: {{ include "confcom.ports" . }}
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

{{/* TCP ports of a network policy; beside 53 the same of UDP. */}}
{{- define "confcom.ports" -}}
{{- $tcp := list }}{{ $udp := list }}
{{- range . }}
{{- $tcp = append $tcp (dict "port" (int .) "protocol" "TCP") }}
{{- if eq (int .) 53 }}{{ $udp = list (dict "port" 53 "protocol" "UDP") }}{{ end }}
{{- end }}
{{- concat $tcp $udp | toJson }}
{{- end }}

{{/* Where quote helpers get certification data: the collateral service, else an operator's PCCS, else an empty word. */}}
{{- define "confcom.collateralSource" -}}
{{- if .Values.collateral.enabled }}https://confcom-collateral.confcom-system.svc:8081
{{- else }}{{ splitList "/sgx/certification" .Values.collateral.url | first | trimSuffix "/" }}{{ end }}
{{- end }}

{{/* The authority of the collateral service's certificate, as a volume. A pod waits for it, because the key is named. */}}
{{- define "confcom.collateralCa" }}
- name: collateral-ca
  at: {{ . }}
  readOnly: true
  configMap: {name: confcom-collateral-ca, items: [{key: ca-certificates.crt, path: ca-certificates.crt}]}
{{- end }}

{{/* The port of an operator's own PCCS, if there is one, as a list. */}}
{{- define "confcom.collateralPorts" -}}
{{- if and (eq .Values.platform "intel") .Values.collateral.url (not .Values.collateral.enabled) -}}
[{{ regexFind ":[0-9]+$" (urlParse .Values.collateral.url).host | trimPrefix ":" | default "443" }}]
{{- else }}[]{{ end }}
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
