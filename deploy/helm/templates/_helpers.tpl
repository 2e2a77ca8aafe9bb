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
An admission policy, and what puts it in force: it restricts what RBAC cannot express, such as fields, or a component's
own node. Dict: root, component, name; policy, the name of its template in _generated.tpl; annotations.
*/}}
{{- define "confcom.policy" -}}
{{- $name := printf "%s-%s.confcom.dev" (ternary "sgx" .name (eq .policy "reserved")) .policy }}
{{- $metadata := include "confcom.global" (list .root .component $name .annotations) -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{- $metadata | nindent 2 }}
spec: {{- include (print "policy." .policy) . | nindent 2 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{- $metadata | nindent 2 }}
spec: {policyName: {{ $name }}, validationActions: [Deny]}
{{- end }}

{{/* A CA (P-256), base64 in JSON: the one in the cluster, else a new one beside those trusted now. List: Secret, name, trusted. */}}
{{- define "confcom.ca" -}}
{{- $secret := lookup "v1" "Secret" "confcom-system" (index . 0) -}}
{{- if and $secret $secret.data -}}
{{- dict "certificate" (index $secret.data "tls.crt") "key" (index $secret.data "tls.key") "bundle" (index $secret.data "ca.crt") | toJson }}
{{- else -}}
{{- $made := genCAWithKey (index . 1) 3650 (genPrivateKey "ecdsa") -}}
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
