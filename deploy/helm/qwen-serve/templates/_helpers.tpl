{{- define "qwen-serve.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What tells this release's pods of one component from all others. Takes root and component. */}}
{{- define "qwen-serve.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "qwen-serve.labels" -}}
{{ include "qwen-serve.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "qwen-serve.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .group }}
fsGroup: {{ .group }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "qwen-serve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "qwen-serve.queueSecret" -}}
{{- .Values.queue.urlSecretName | default (printf "%s-queue" (include "qwen-serve.name" .)) -}}
{{- end -}}

{{- define "qwen-serve.modelsClaim" -}}
{{- .Values.models.persistence.existingClaim | default (printf "%s-models" (include "qwen-serve.name" .)) -}}
{{- end -}}

{{/*
A pod that runs one of qwen-serve's commands. Takes root, component, command (serve, server or
engine), resources, computes (it has an engine) and serves (it answers HTTP).
*/}}
{{- define "qwen-serve.pod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "qwen-serve.labels" . | nindent 4 }}
  annotations:
    checksum/options: {{ include (print .root.Template.BasePath "/options.yaml") .root | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "qwen-serve.name" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false  # its variables would look like options
  # preStop, the drain, the 15 s that processes get to end, and some
  terminationGracePeriodSeconds: {{ add $values.drainTimeout 30 }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "qwen-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 4 }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "qwen-serve.selector" . | nindent 10 }}
  containers:
    - name: qwen-serve
      image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [{{ .command }}]
      envFrom:
        - configMapRef: {name: {{ include "qwen-serve.name" .root }}}
        {{- with $values.secretName }}
        - secretRef: {name: {{ . }}}
        {{- end }}
      {{- if or .computes (ne .command "serve") $values.keysSecretName }}
      env:
        {{- if ne .command "serve" }}
        - name: QWEN_SERVE_QUEUE
          valueFrom:
            secretKeyRef: {name: {{ include "qwen-serve.queueSecret" .root }}, key: url}
        {{- end }}
        {{- if .computes }}
        # As many threads as the pod may use cores: more would only wait for each other.
        - name: QWEN_SERVE_NUM_THREADS
          valueFrom:
            resourceFieldRef: {resource: {{ dig "limits" "cpu" "" .resources | empty | ternary "requests.cpu" "limits.cpu" }}}
        {{- if $values.gpu.count }}
        - name: QWEN_SERVE_DEVICE
          value: cuda
        - name: QWEN_SERVE_TENSOR_PARALLEL_SIZE
          value: {{ $values.gpu.count | quote }}
        {{- end }}
        {{- end }}
        {{- if and .serves $values.keysSecretName }}
        - name: QWEN_SERVE_KEYS_FILE
          value: /run/secrets/qwen-serve/keys
        {{- end }}
      {{- end }}
      {{- if .serves }}
      ports:
        - {name: http, containerPort: 8000}
      # Downloading and loading a model: up to half an hour.
      startupProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        failureThreshold: 360
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 1
      lifecycle:
        # Until nobody sends new requests here; SIGTERM comes after it.
        preStop:
          exec:
            command: [sleep, "5"]
      {{- end }}
      resources:
        {{- $resources := deepCopy .resources }}
        {{- if and .computes $values.gpu.count }}
        {{- $_ := set $resources "limits" (set ($resources.limits | default dict) $values.gpu.resourceName $values.gpu.count) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "qwen-serve.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        {{- if and .computes (gt (int $values.gpu.count) 1) }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- if and .serves $values.keysSecretName }}
        - {name: keys, mountPath: /run/secrets/qwen-serve, readOnly: true}
        {{- end }}
  volumes:
    - name: models
      {{- if $values.models.persistence.enabled }}
      persistentVolumeClaim: {claimName: {{ include "qwen-serve.modelsClaim" .root }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: {medium: Memory, sizeLimit: 256Mi}
    {{- if and .computes (gt (int $values.gpu.count) 1) }}
    - name: shared-memory  # of the processes that split a model
      emptyDir: {medium: Memory, sizeLimit: 1Gi}
    {{- end }}
    {{- if and .serves $values.keysSecretName }}
    - name: keys
      secret: {secretName: {{ $values.keysSecretName }}, defaultMode: 0440}
    {{- end }}
  {{- if .computes }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end -}}
