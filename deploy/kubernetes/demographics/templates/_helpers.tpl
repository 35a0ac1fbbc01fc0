{{- define "demographics.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "demographics.fullname" -}}
{{- $name := include "demographics.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "demographics.labels" -}}
app.kubernetes.io/name: {{ include "demographics.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* What tells a service's pods from all others; dict "root" . "service" "ingest" */ -}}
{{- define "demographics.selector" -}}
app.kubernetes.io/name: {{ include "demographics.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end -}}

{{- /* What a NetworkPolicy finds pods by: whoever does as a service does, reaches what it reaches */ -}}
{{- define "demographics.network" -}}
demographics.reaches: {{ .service }}
{{- end -}}

{{- define "demographics.image" -}}
{{- $name := ternary "inference-gpu" .service (and (eq .service "inference") .root.Values.inference.gpu.enabled) -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end -}}
demographics-{{ $name }}:{{ (index .root.Values .service).imageTag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "demographics.port" -}}
{{- get (dict "ingest" "9101" "inference" "9102" "aggregator" "8080") . -}}
{{- end -}}

{{- /* Whether something is wanted: dict "root" . "enabled" VALUE "api" GROUP/VERSION; empty where it is not */ -}}
{{- define "demographics.wanted" -}}
{{- if eq (toString .enabled) "auto" -}}
{{- if .root.Capabilities.APIVersions.Has .api }}yes{{ end -}}
{{- else if .enabled }}yes{{ end -}}
{{- end -}}

{{- define "demographics.scaled" -}}
{{- include "demographics.wanted" (dict "root" . "enabled" .Values.autoscaling.enabled "api" "keda.sh/v1alpha1") -}}
{{- end -}}

{{- /* The settings of a service, secrets by reference; dict "root" . "service" "ingest", and "secrets" where they are others than the service's */ -}}
{{- define "demographics.env" -}}
{{- $values := .root.Values -}}
{{- $own := index $values .service -}}
{{- $secrets := ternary .secrets $own.secrets (hasKey . "secrets") -}}
{{- $settings := mergeOverwrite (dict
      "DEMOGRAPHICS_DRAIN_S" (toString $values.drainSeconds)
      "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS" $values.kafka.bootstrapServers
      "DEMOGRAPHICS_KAFKA__SECURITY_PROTOCOL" $values.kafka.securityProtocol
      "DEMOGRAPHICS_KAFKA__PARTITIONS" (toString $values.kafka.partitions)
      "DEMOGRAPHICS_KAFKA__REPLICATION" (toString $values.kafka.replication)
      "DEMOGRAPHICS_KAFKA__FACE_CROPS_RETENTION_S" ($values.kafka.faceCropsRetentionSeconds | int64 | toString)
      "DEMOGRAPHICS_KAFKA__PREDICTIONS_RETENTION_S" ($values.kafka.predictionsRetentionSeconds | int64 | toString)
    ) (deepCopy $values.settings) (deepCopy $own.settings) -}}
{{- if $values.kafka.ca.secretName }}
{{- $_ := set $settings "DEMOGRAPHICS_KAFKA__CA_FILE" (printf "/etc/demographics/kafka-ca/%s" $values.kafka.ca.key) }}
{{- end }}
{{- if eq .service "aggregator" }}
{{- $_ := set $settings "DEMOGRAPHICS_REDIS__NAMESPACE" $values.redis.namespace }}
{{- end }}
{{- range $name, $value := $settings }}
- name: {{ $name }}
  value: {{ toString $value | quote }}
{{- end }}
{{- range $name, $secret := $secrets }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $secret.secretName }}, key: {{ $secret.key }}}}
{{- end }}
{{- if hasPrefix "SASL" $values.kafka.securityProtocol }}
- name: DEMOGRAPHICS_KAFKA__SASL_MECHANISM
  value: {{ $values.kafka.saslMechanism }}
{{- range $name, $key := dict "USERNAME" $values.kafka.credentials.usernameKey "PASSWORD" $values.kafka.credentials.passwordKey }}
{{- if not (hasKey $secrets (printf "DEMOGRAPHICS_KAFKA__%s" $name)) }}     {{- /* a service may have a user of its own */}}
- name: DEMOGRAPHICS_KAFKA__{{ $name }}
  valueFrom: {secretKeyRef: {name: {{ include "demographics.kafkaSecret" $.root }}, key: {{ $key }}}}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq .service "aggregator") (not (hasKey $secrets "DEMOGRAPHICS_REDIS__URL")) }}
- name: DEMOGRAPHICS_REDIS__URL
{{- if $values.redis.secretName }}
  valueFrom: {secretKeyRef: {name: {{ $values.redis.secretName }}, key: {{ $values.redis.secretKey }}}}
{{- else }}
  value: {{ required "redis.url or redis.secretName: say where Redis is" $values.redis.url | quote }}
{{- end }}
{{- end }}
{{- if $values.http.tokenSecretName }}
- name: DEMOGRAPHICS_HTTP__TOKEN
  valueFrom: {secretKeyRef: {name: {{ $values.http.tokenSecretName }}, key: {{ $values.http.tokenSecretKey }}}}
{{- end }}
{{- end -}}

{{- define "demographics.kafkaSecret" -}}
{{- required "kafka.credentials.secretName: SASL needs a secret with user name and password" .Values.kafka.credentials.secretName -}}
{{- end -}}

{{- define "demographics.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "demographics.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* dict "root" . "service" "ingest" */ -}}
{{- define "demographics.volumes" -}}
{{- $own := index .root.Values .service -}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- with .root.Values.kafka.ca }}{{ if .secretName }}
- name: kafka-ca
  secret: {secretName: {{ .secretName }}, items: [{key: {{ .key }}, path: {{ .key }}}]}
{{- end }}{{ end }}
{{- if and (eq .service "ingest") (eq .root.Values.cameras.source "file") }}
- name: cameras
  configMap: {name: {{ include "demographics.fullname" .root }}-cameras}
{{- end }}
{{- with $own.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "demographics.mounts" -}}
{{- $own := index .root.Values .service -}}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.kafka.ca.secretName }}
- {name: kafka-ca, mountPath: /etc/demographics/kafka-ca, readOnly: true}
{{- end }}
{{- if and (eq .service "ingest") (eq .root.Values.cameras.source "file") }}
- {name: cameras, mountPath: /etc/demographics/cameras, readOnly: true}
{{- end }}
{{- with $own.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
