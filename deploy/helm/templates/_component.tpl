{{/*
Every component has a template component.NAME that describes it in YAML. All of its objects follow from that:

name: of its objects
replicas: pods of a Deployment, on any node; without it, a DaemonSet on every SGX node
strategy: of the Deployment
args: of the program; by default the component's name
daemon: whose settings these are; by default the component
settings: of the daemon, beside the addresses of its ports
env: further environment variables
ports: by name, where it listens: http without TLS, https, tls for the metrics API. Probes ask http, else https
called: the port that the API server alone reaches, if the values have its addresses
servicePort: of its Service, which leads to https
egress: ports that it reaches, beside those of the API server
rules, clusterRules: its rights in the namespace and in the cluster. Without any it does not reach the API server
policies: admission policies over what it writes
writes: secret and configMap, which are made without data: it writes a certificate or CA there, and upgrades leave that
  alone; given, a Secret that it reads instead, if it has a name
devices: resources of its container that no value changes
confined: its security context, as for confcom.confined
init: tasks that prepare something for it, as for confcom.task
volumes: beside /tmp: as in a pod, and `at`, where it mounts them; `writable`
mounts: further ones
pod: further fields of its pods
traits: names of templates trait.NAME with what several components have: more of the above. They get this description
*/}}

{{/* Descriptions of the components that run, with their values as `own`, by name, as JSON. */}}
{{- define "confcom.components" -}}
{{- $sections := dict "device-plugin" "devicePlugin" "quote-helper" "quoteHelper" "webhook" "webhook"
  "collateral" "collateral" "attestation" "attestation" "certificate-signer" "attestedCertificates"
  "metrics" "metrics" "metrics-api" "autoscaling" }}
{{- $found := dict }}
{{- range $component, $section := $sections }}
{{- $own := get $.Values $section }}
{{- if or $own.enabled (eq $component "device-plugin") }}
{{- $it := include (print "component." $component) $ | fromYaml }}
{{- with $it.Error }}{{ fail (printf "component.%s: %s" $component .) }}{{ end }}
{{- $_ := set (set $it "component" $component) "own" $own }}
{{- range $it.traits }}
{{- $trait := include (print "trait." .) (merge (dict "root" $) $it) | fromYaml }}
{{- with $trait.Error }}{{ fail (printf "component.%s: %s" $component .) }}{{ end }}
{{- range $key := list "egress" "env" "init" "volumes" }}
{{- $_ := set $it $key (concat (get $it $key | default list) (get $trait $key | default list)) }}
{{- end }}
{{- $_ := merge $it $trait }}
{{- end }}
{{- with $it.writes }}{{ $_ := set $it "rules" (include "confcom.writesRules" . | fromYamlArray) }}{{ end }}
{{- $_ := set $found $component $it }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "confcom.writesRules" -}}
- {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [{{ .given | default .secret | quote }}]}
- {apiGroups: [""], resources: [secrets], verbs: [patch], resourceNames: [{{ .secret }}]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, patch], resourceNames: [{{ .configMap }}]}
{{- end }}

{{/* Every object of a component. Dict: its description; root. */}}
{{- define "confcom.component" -}}
{{ include "confcom.access" . }}
{{- range .policies }}
---
{{ include "confcom.policy" (merge (dict "policy" .) $) }}
{{- end }}
{{- with .writes }}
---
apiVersion: v1
kind: Secret
metadata: {{- include "confcom.namespaced" (list $.root $.component .secret) | nindent 2 }}
type: Opaque
---
apiVersion: v1
kind: ConfigMap
metadata: {{- include "confcom.namespaced" (list $.root $.component .configMap) | nindent 2 }}
---
# It may change some keys of these two, and nothing else.
{{ include "confcom.policy" (merge (dict "policy" "own-data") $) }}
{{- end }}
{{- with .servicePort }}
---
apiVersion: v1
kind: Service
metadata: {{- include "confcom.namespaced" (list $.root $.component $.name) | nindent 2 }}
spec:
  selector: {{ include "confcom.selector" $.component }}
  ports: [{name: https, port: {{ . }}, targetPort: https, protocol: TCP}]
{{- end }}
{{- if hasKey . "replicas" }}
---
# One pod at a time may be evicted, and those that are not ready always.
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

{{/* Its network policy, service account, roles and their bindings. The same dict; annotations. */}}
{{- define "confcom.access" -}}
{{- $api := ternary .root.Values.apiServer.ports list (eq (include "confcom.asksApi" .) "true") }}
{{- $ports := .ports | default dict }}
{{- $sources := list }}
{{- range .root.Values.apiServer.addresses }}{{ $sources = append $sources (dict "ipBlock" (dict "cidr" .)) }}{{ end -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "confcom.namespaced" (list .root .component .name .annotations) | nindent 2 }}
spec:
  podSelector: {matchLabels: {{ include "confcom.selector" .component }}}
  policyTypes: [Ingress, Egress]
  ingress: {{- if not $ports }} []{{ end }}
  {{- with omit $ports (.called | default "") | values }}
  - ports: {{ include "confcom.ports" . }}
  {{- end }}
  {{- with .called }}
  - ports: {{ include "confcom.ports" (list (get $ports .)) }}
    {{- with $sources }}
    from: {{ toJson . }}
    {{- end }}
  {{- end }}
  egress:
  {{- with concat (.egress | default list) $api }}
  - ports: {{ include "confcom.ports" . }}
  {{- else }} []
  {{- end }}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "confcom.namespaced" (list .root .component .name .annotations) | nindent 2 }}
automountServiceAccountToken: {{ include "confcom.asksApi" . }}
{{- range $kind, $rules := dict "Role" .rules "ClusterRole" .clusterRules }}
{{- if $rules }}
{{- $name := ternary $.name (printf "confcom:%s" $.name) (eq $kind "Role") }}
{{- $place := ternary "confcom.namespaced" "confcom.global" (eq $kind "Role") }}
{{- $metadata := include $place (list $.root $.component $name $.annotations) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata: {{- $metadata | nindent 2 }}
rules: {{- toYaml $rules | nindent 0 }}
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

{{/* Whether it has rights at the Kubernetes API: `true` or `false`. */}}
{{- define "confcom.asksApi" -}}
{{ not (and (empty .rules) (empty .clusterRules)) }}
{{- end }}

{{/* TCP ports of a network policy, each once; beside 53 the same of UDP. */}}
{{- define "confcom.ports" -}}
{{- $found := list }}
{{- range toStrings . | uniq | sortAlpha }}
{{- $found = append $found (dict "port" (int .) "protocol" "TCP") }}
{{- if eq . "53" }}{{ $found = append $found (dict "port" 53 "protocol" "UDP") }}{{ end }}
{{- end }}
{{- toJson $found }}
{{- end }}
