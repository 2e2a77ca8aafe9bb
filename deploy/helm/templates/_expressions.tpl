{{- /* Generated from confcom.manifests by scripts/generate.py; do not edit. */}}
{{- define "confcom.image" -}}
{{ .Values.image | default (printf "confcom/confcom:%s" .Chart.AppVersion) }}
{{- end -}}
{{- define "confcom.provisionLimit" -}}
{{ if .Values.provisionGrants }}110{{ else if .Values.quoteHelperEnabled }}2{{ else }}0{{ end }}
{{- end -}}
{{- define "confcom.provisionNamespaces" -}}
{{- $found := list -}}
{{- if .Values.quoteHelperEnabled }}{{ $found = append $found "confcom-system" }}{{ end -}}
{{- range .Values.provisionGrants }}{{ $found = append $found (splitList "/" . | first) }}{{ end -}}
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
