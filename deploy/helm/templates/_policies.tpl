{{/*
An admission policy, and what puts it in force: it restricts what RBAC cannot express, such as fields, or a component's
own node. Dict: root, component, name, of the account that it restricts; policy; everyone, if it restricts all other
namespaces instead; annotations. The template policy.POLICY has rule, what is reviewed, variables and validations.
*/}}
{{- define "confcom.policy" -}}
{{- $name := printf "%s-%s.confcom.dev" .name .policy }}
{{- $metadata := include "confcom.global" (list .root .component $name .annotations) }}
{{- $body := include (print "policy." .policy) .root | fromYaml }}
{{- with $body.Error }}{{ fail (printf "policy.%s: %s" $.policy .) }}{{ end -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{- $metadata | nindent 2 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{{ toJson $body.rule }}]
    {{- if .everyone }}
    namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [confcom-system]}]}
    {{- end }}
  {{- if not .everyone }}
  matchConditions:
  - {name: account, expression: "request.userInfo.username == 'system:serviceaccount:confcom-system:{{ .name }}'"}
  {{- end }}
  variables: {{- $body.variables | default list | toYaml | nindent 4 }}
  validations: {{- $body.validations | toYaml | nindent 4 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{- $metadata | nindent 2 }}
spec: {policyName: {{ $name }}, validationActions: [Deny]}
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

{{/* Validations: of maps nothing changes but some keys. A list for each: the map's variable, then the keys. */}}
{{- define "confcom.kept" -}}
{{- range . }}
{{- $name := first . }}{{ $keys := rest . }}{{ $new := printf "variables.%s" $name }}{{ $old := printf "%sBefore" $new }}
{{- /* What the API server itself changes. */}}
{{- if eq $name "metadata" }}{{ $keys = concat $keys (list "managedFields" "resourceVersion" "generation") }}{{ end }}
{{- $in := printf "k in ['%s']" (join "', '" $keys) }}
- expression: {{ printf "%s.all(k, %s || (k in %s && %s[k] == %s[k])) && %s.all(k, %s || k in %s)" $new $in $old $old $new $old $in $new | quote }}
  message: {{ printf "nothing of the %s may change but %s" $name (join ", " $keys) }}
{{- end }}
{{- end }}
