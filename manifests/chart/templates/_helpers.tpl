{{- define "pyproxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Labels of every object. Selectors stay kubeadm's: a DaemonSet's cannot be changed. */}}
{{- define "pyproxy.labels" -}}
app.kubernetes.io/name: pyproxy
app.kubernetes.io/component: service-proxy
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The file /var/lib/pyproxy/config.yaml. */}}
{{- define "pyproxy.config" -}}
apiVersion: pyproxy.io/v1alpha1
kind: PyproxyConfiguration
mode: {{ .Values.mode }}
{{- with .Values.apiServers }}
apiServers:
{{- range . }}
  - {{ . | quote }}
{{- end }}
{{- end }}
{{- with .Values.metricsBindAddress }}
metricsBindAddress: {{ . | quote }}
{{- end }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end -}}
