{{- define "kiln.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kiln.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "kiln.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kiln.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kiln.serviceAccountName" -}}
{{- default (include "kiln.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- /* Arguments: dict "root" $ "component" "operator" */ -}}
{{- define "kiln.selector" -}}
app.kubernetes.io/name: {{ include "kiln.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "kiln.labels" -}}
{{ include "kiln.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Arguments: dict "root" $ "image" .Values.operator.image */ -}}
{{- define "kiln.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* What every container of ours is: no privilege, no capability, nothing to write to. Users differ. */ -}}
{{- define "kiln.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The operator's typed configuration: operator/src/config.rs reads it and refuses what it does not know. */ -}}
{{- define "kiln.config" -}}
builderImage: {{ include "kiln.image" (dict "root" . "image" .Values.builder.image) | quote }}
{{- if .Values.source.image.repository }}
sourceImage: {{ include "kiln.image" (dict "root" . "image" .Values.source.image) | quote }}
{{- end }}
imagePullPolicy: {{ .Values.builder.image.pullPolicy }}
isolation: {{ .Values.builder.isolation }}
allowedIsolations: {{ toJson .Values.builder.allowedIsolations }}
{{- with .Values.builder.seccomp.profile }}
seccompProfile: {{ . | quote }}
{{- end }}
{{- with .Values.builder.appArmor.profile }}
appArmorProfile: {{ . | quote }}
{{- end }}
procMountUnmasked: {{ .Values.builder.procMountUnmasked }}
registries:
  {{- toYaml .Values.registries | nindent 2 }}
defaults:
  {{- /* Amounts as text: YAML's 0.5 and 4294967296 are no integers that the operator takes for a quantity. */}}
  {{- $resources := dict }}
  {{- range $side, $amounts := .Values.defaults.resources }}
  {{- $texts := dict }}
  {{- range $name, $amount := $amounts }}{{ $_ := set $texts $name (toJson $amount | trimAll "\"") }}{{ end }}
  {{- $_ := set $resources $side $texts }}
  {{- end }}
  {{- toYaml (set (deepCopy .Values.defaults) "resources" $resources) | nindent 2 }}
{{- /* Without int64 a million reads 1e+06. */}}
maxConcurrentBuilds: {{ int64 .Values.maxConcurrentBuilds }}
maxConcurrentBuildsPerNamespace: {{ int64 .Values.maxConcurrentBuildsPerNamespace }}
watchNamespaces: {{ toJson .Values.watchNamespaces }}
podSchedulingDeadline: {{ .Values.podSchedulingDeadline | quote }}
podStartGrace: {{ .Values.podStartGrace | quote }}
{{- end }}
