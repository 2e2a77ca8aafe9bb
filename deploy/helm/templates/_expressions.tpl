{{- /* Generated from confcom.manifests by scripts/generate.py; do not edit. */}}
{{- define "confcom.image" -}}
{{ .Values.image | default (printf "confcom/confcom:%s" .Chart.AppVersion) }}
{{- end -}}
{{- define "confcom.webhookCa" -}}
{{- $secret := lookup "v1" "Secret" "confcom-system" "sgx-webhook-ca" -}}
{{- $found := dict -}}
{{- if $secret -}}
{{- $_ := set $found "certificate" (index $secret.data "tls.crt") -}}
{{- $_ := set $found "key" (index $secret.data "tls.key") -}}
{{- $_ := set $found "bundle" (index $secret.data "ca.crt") -}}
{{- else -}}
{{- $made := genCA "confcom admission webhook CA" 3650 -}}
{{- $kind := "MutatingWebhookConfiguration" -}}
{{- $now := lookup "admissionregistration.k8s.io/v1" $kind "" "sgx-webhook.confcom.dev" -}}
{{- $trusted := "" -}}
{{- if $now }}{{ $trusted = (first $now.webhooks).clientConfig.caBundle | default "" | b64dec }}{{ end -}}
{{- $_ := set $found "certificate" ($made.Cert | b64enc) -}}
{{- $_ := set $found "key" ($made.Key | b64enc) -}}
{{- $_ := set $found "bundle" (printf "%s%s" $made.Cert $trusted | b64enc) -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}
{{- define "confcom.provisionLimit" -}}
{{ if .Values.provisionGrants }}110{{ else }}0{{ end }}
{{- end -}}
{{- define "confcom.provisionNamespaces" -}}
{{- $found := list -}}
{{- range .Values.provisionGrants }}
{{- if and (eq $.Values.publisher "dra") (not (hasSuffix "/*" .)) }}
{{- fail (printf "the grant %s is for one service account, and claims (publisher dra) tell none apart" .) }}
{{- end }}
{{- $found = append $found (splitList "/" . | first) }}
{{- end -}}
{{ join "," (uniq $found) }}
{{- end -}}
{{- define "confcom.collateralUrl" -}}
{{ splitList "/sgx/certification" .Values.collateralUrl | first | trimSuffix "/" }}
{{- end -}}
{{- define "confcom.collateralPort" -}}
{{- $host := (urlParse .Values.collateralUrl).host -}}
{{- if regexMatch ":[0-9]+$" $host }}{{ regexFind "[0-9]+$" $host }}{{ else }}443{{ end }}
{{- end -}}
{{- define "confcom.toleration" -}}
{{- $found := dict -}}
{{- if eq . "*" }}{{ $_ := set $found "operator" "Exists" }}{{ else }}
{{- $parts := splitn ":" 2 . }}{{ $pair := splitn "=" 2 $parts._0 }}
{{- $_ := set $found "key" $pair._0 }}
{{- if contains "=" $parts._0 }}{{ $_ := set $found "value" $pair._1 }}
{{- else }}{{ $_ := set $found "operator" "Exists" }}{{ end }}
{{- if contains ":" . }}{{ $_ := set $found "effect" $parts._1 }}{{ end }}
{{- end -}}
{{ toJson $found }}
{{- end -}}
