{{/*
An admission policy, and what puts it in force: it restricts what RBAC cannot express, such as fields, or a component's
own node. Dict: root, component, name, of the account that it restricts; policy, its key in files/policies.yaml, where
the platform may have its own; everyone, if it restricts all other namespaces instead; annotations.
*/}}
{{- define "confcom.policy" -}}
{{- $values := .root.Values }}
{{- $text := .root.Files.Get "files/policies.yaml" | replace "@overcommit@" (toString $values.epc.overcommit) }}
{{- $text = $text | replace "@simulatedEpc@" $values.simulatedEpc | replace "@provisionGrants@" (join "," $values.provisionGrants) }}
{{- $bodies := fromYaml $text }}
{{- $body := get $bodies (print .policy "-" $values.platform) | default (get $bodies .policy) }}
{{- $name := printf "%s-%s.confcom.dev" .name .policy }}
{{- $metadata := include "confcom.global" (list .root .component $name .annotations) -}}
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
  validations: {{- toYaml $body.validations | nindent 4 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{- $metadata | nindent 2 }}
spec: {policyName: {{ $name }}, validationActions: [Deny]}
{{- end }}
