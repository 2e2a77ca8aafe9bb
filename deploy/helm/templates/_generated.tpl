{{/* Generated from confcom.manifests by scripts/chart_files.py; do not edit. */}}
{{- define "policy.own-data" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets", "configmaps"]}]}
variables:
- {"name": "object", "expression": "dyn(object)"}
- {"name": "metadata", "expression": "dyn(object.?metadata.orValue({}))"}
- {"name": "data", "expression": "dyn(object.?data.orValue({}))"}
- {"name": "objectBefore", "expression": "dyn(oldObject)"}
- {"name": "metadataBefore", "expression": "dyn(oldObject.?metadata.orValue({}))"}
- {"name": "dataBefore", "expression": "dyn(oldObject.?data.orValue({}))"}
validations:
- {"expression": "variables.object.all(k, k in ['metadata', 'data'] || (k in variables.objectBefore && variables.objectBefore[k] == variables.object[k])) && variables.objectBefore.all(k, k in ['metadata', 'data'] || k in variables.object)", "message": "nothing of the object may change but metadata, data"}
- {"expression": "variables.metadata.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || (k in variables.metadataBefore && variables.metadataBefore[k] == variables.metadata[k])) && variables.metadataBefore.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || k in variables.metadata)", "message": "nothing of the metadata may change but managedFields, resourceVersion, generation"}
- {"expression": "variables.data.all(k, k in ['tls.crt', 'tls.key', 'tls.since', 'next.crt', 'next.key', 'ca.crt', 'ca-certificates.crt'] || (k in variables.dataBefore && variables.dataBefore[k] == variables.data[k])) && variables.dataBefore.all(k, k in ['tls.crt', 'tls.key', 'tls.since', 'next.crt', 'next.key', 'ca.crt', 'ca-certificates.crt'] || k in variables.data)", "message": "nothing of the data may change but tls.crt, tls.key, tls.since, next.crt, next.key, ca.crt, ca-certificates.crt"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:{{ .name }}'"}]
{{- end }}
{{- define "policy.own-events" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["events"]}]}
variables:
- {"name": "event", "expression": "dyn(object)"}
- {"name": "metadata", "expression": "dyn(object.?metadata.orValue({}))"}
- {"name": "eventBefore", "expression": "dyn((request.operation == 'CREATE' ? object : oldObject))"}
- {"name": "metadataBefore", "expression": "dyn((request.operation == 'CREATE' ? object : oldObject).?metadata.orValue({}))"}
validations:
- {"expression": "object.reportingController == 'confcom.dev/metrics' && (request.operation == 'CREATE' ? object : oldObject).reportingController == 'confcom.dev/metrics'", "message": "the metrics component writes events of the controller confcom.dev/metrics only"}
- {"expression": "'authentication.kubernetes.io/node-name' in request.userInfo.extra && request.userInfo.extra['authentication.kubernetes.io/node-name'] == [object.reportingInstance]", "message": "the metrics component reports as its own node only"}
- {"expression": "object.regarding.kind == 'Pod'", "message": "the metrics component writes events about pods only"}
- {"expression": "size(object.metadata.?ownerReferences.orValue([])) + size(object.metadata.?finalizers.orValue([])) == 0", "message": "the metrics component's events have no owners and no finalizers"}
- {"expression": "variables.event.all(k, k in ['metadata', 'series'] || (k in variables.eventBefore && variables.eventBefore[k] == variables.event[k])) && variables.eventBefore.all(k, k in ['metadata', 'series'] || k in variables.event)", "message": "nothing of the event may change but metadata, series"}
- {"expression": "variables.metadata.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || (k in variables.metadataBefore && variables.metadataBefore[k] == variables.metadata[k])) && variables.metadataBefore.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || k in variables.metadata)", "message": "nothing of the metadata may change but managedFields, resourceVersion, generation"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:sgx-metrics'"}]
{{- end }}
{{- define "policy.own-marks" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]}]}
variables:
- {"name": "node", "expression": "dyn(object)"}
- {"name": "metadata", "expression": "dyn(object.?metadata.orValue({}))"}
- {"name": "labels", "expression": "dyn(object.?metadata.?labels.orValue({}))"}
- {"name": "annotations", "expression": "dyn(object.?metadata.?annotations.orValue({}))"}
- {"name": "status", "expression": "dyn(object.?status.orValue({}))"}
- {"name": "capacity", "expression": "dyn(object.?status.?capacity.orValue({}))"}
- {"name": "allocatable", "expression": "dyn(object.?status.?allocatable.orValue({}))"}
- {"name": "nodeBefore", "expression": "dyn(oldObject)"}
- {"name": "metadataBefore", "expression": "dyn(oldObject.?metadata.orValue({}))"}
- {"name": "labelsBefore", "expression": "dyn(oldObject.?metadata.?labels.orValue({}))"}
- {"name": "annotationsBefore", "expression": "dyn(oldObject.?metadata.?annotations.orValue({}))"}
- {"name": "statusBefore", "expression": "dyn(oldObject.?status.orValue({}))"}
- {"name": "capacityBefore", "expression": "dyn(oldObject.?status.?capacity.orValue({}))"}
- {"name": "allocatableBefore", "expression": "dyn(oldObject.?status.?allocatable.orValue({}))"}
validations:
- {"expression": "variables.node.all(k, k in ['metadata', 'status'] || (k in variables.nodeBefore && variables.nodeBefore[k] == variables.node[k])) && variables.nodeBefore.all(k, k in ['metadata', 'status'] || k in variables.node)", "message": "nothing of the node may change but metadata, status"}
- {"expression": "variables.metadata.all(k, k in ['labels', 'annotations', 'managedFields', 'resourceVersion', 'generation'] || (k in variables.metadataBefore && variables.metadataBefore[k] == variables.metadata[k])) && variables.metadataBefore.all(k, k in ['labels', 'annotations', 'managedFields', 'resourceVersion', 'generation'] || k in variables.metadata)", "message": "nothing of the metadata may change but labels, annotations, managedFields, resourceVersion, generation"}
- {"expression": "variables.status.all(k, k in ['capacity', 'allocatable'] || (k in variables.statusBefore && variables.statusBefore[k] == variables.status[k])) && variables.statusBefore.all(k, k in ['capacity', 'allocatable'] || k in variables.status)", "message": "nothing of the status may change but capacity, allocatable"}
- {"expression": "variables.labels.all(k, k in ['confcom.dev/sgx-epc-mib', 'confcom.dev/sgx-epc-overcommit'] || (k in variables.labelsBefore && variables.labelsBefore[k] == variables.labels[k])) && variables.labelsBefore.all(k, k in ['confcom.dev/sgx-epc-mib', 'confcom.dev/sgx-epc-overcommit'] || k in variables.labels)", "message": "nothing of the labels may change but confcom.dev/sgx-epc-mib, confcom.dev/sgx-epc-overcommit"}
- {"expression": "!['confcom.dev/sgx-epc-mib', 'confcom.dev/sgx-epc-overcommit'].exists(k, k in variables.labels)", "message": "the cleanup removes confcom.dev/sgx-epc-mib, confcom.dev/sgx-epc-overcommit"}
- {"expression": "variables.annotations.all(k, k in ['confcom.dev/sgx-epc-boot'] || (k in variables.annotationsBefore && variables.annotationsBefore[k] == variables.annotations[k])) && variables.annotationsBefore.all(k, k in ['confcom.dev/sgx-epc-boot'] || k in variables.annotations)", "message": "nothing of the annotations may change but confcom.dev/sgx-epc-boot"}
- {"expression": "!['confcom.dev/sgx-epc-boot'].exists(k, k in variables.annotations)", "message": "the cleanup removes confcom.dev/sgx-epc-boot"}
- {"expression": "variables.capacity.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'] || (k in variables.capacityBefore && variables.capacityBefore[k] == variables.capacity[k])) && variables.capacityBefore.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'] || k in variables.capacity)", "message": "nothing of the capacity may change but kubernetes.azure.com/sgx_epc_mem_in_MiB, sgx.intel.com/enclave, sgx.intel.com/provision, sgx.confcom.dev/quote-helper, sgx.confcom.dev/quote-helper-epc"}
- {"expression": "!['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'].exists(k, k in variables.capacity)", "message": "the cleanup removes kubernetes.azure.com/sgx_epc_mem_in_MiB, sgx.intel.com/enclave, sgx.intel.com/provision, sgx.confcom.dev/quote-helper, sgx.confcom.dev/quote-helper-epc"}
- {"expression": "variables.allocatable.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'] || (k in variables.allocatableBefore && variables.allocatableBefore[k] == variables.allocatable[k])) && variables.allocatableBefore.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'] || k in variables.allocatable)", "message": "nothing of the allocatable may change but kubernetes.azure.com/sgx_epc_mem_in_MiB, sgx.intel.com/enclave, sgx.intel.com/provision, sgx.confcom.dev/quote-helper, sgx.confcom.dev/quote-helper-epc"}
- {"expression": "!['kubernetes.azure.com/sgx_epc_mem_in_MiB', 'sgx.intel.com/enclave', 'sgx.intel.com/provision', 'sgx.confcom.dev/quote-helper', 'sgx.confcom.dev/quote-helper-epc'].exists(k, k in variables.allocatable)", "message": "the cleanup removes kubernetes.azure.com/sgx_epc_mem_in_MiB, sgx.intel.com/enclave, sgx.intel.com/provision, sgx.confcom.dev/quote-helper, sgx.confcom.dev/quote-helper-epc"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:confcom-cleanup'"}]
{{- end }}
{{- define "policy.own-pod-events" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["events"]}]}
variables:
- {"name": "event", "expression": "dyn(object)"}
- {"name": "metadata", "expression": "dyn(object.?metadata.orValue({}))"}
- {"name": "eventBefore", "expression": "dyn((request.operation == 'CREATE' ? object : oldObject))"}
- {"name": "metadataBefore", "expression": "dyn((request.operation == 'CREATE' ? object : oldObject).?metadata.orValue({}))"}
validations:
- {"expression": "object.reportingController == 'confcom.dev/certificate-signer' && (request.operation == 'CREATE' ? object : oldObject).reportingController == 'confcom.dev/certificate-signer'", "message": "the certificate-signer component writes events of the controller confcom.dev/certificate-signer only"}
- {"expression": "object.regarding.kind == 'Pod'", "message": "the certificate-signer component writes events about pods only"}
- {"expression": "size(object.metadata.?ownerReferences.orValue([])) + size(object.metadata.?finalizers.orValue([])) == 0", "message": "the certificate-signer component's events have no owners and no finalizers"}
- {"expression": "variables.event.all(k, k in ['metadata', 'series'] || (k in variables.eventBefore && variables.eventBefore[k] == variables.event[k])) && variables.eventBefore.all(k, k in ['metadata', 'series'] || k in variables.event)", "message": "nothing of the event may change but metadata, series"}
- {"expression": "variables.metadata.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || (k in variables.metadataBefore && variables.metadataBefore[k] == variables.metadata[k])) && variables.metadataBefore.all(k, k in ['managedFields', 'resourceVersion', 'generation'] || k in variables.metadata)", "message": "nothing of the metadata may change but managedFields, resourceVersion, generation"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:{{ .name }}'"}]
{{- end }}
{{- define "policy.own-slices" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": ["resource.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["resourceslices"]}]}
variables:
- {"name": "written", "expression": "request.operation == 'DELETE' ? oldObject : object"}
- {"name": "owners", "expression": "request.operation == 'DELETE' ? [] : object.metadata.?ownerReferences.orValue([])"}
- {"name": "finalizers", "expression": "request.operation == 'DELETE' ? [] : object.metadata.?finalizers.orValue([])"}
validations:
- {"expression": "'authentication.kubernetes.io/node-name' in request.userInfo.extra && request.userInfo.extra['authentication.kubernetes.io/node-name'] == [variables.written.spec.nodeName]", "message": "the SGX device plugin writes slices of its own node only"}
- {"expression": "variables.written.spec.driver == 'sgx.confcom.dev'", "message": "the SGX device plugin writes slices of the driver sgx.confcom.dev only"}
- {"expression": "variables.written.spec.pool.name == variables.written.spec.nodeName", "message": "the SGX device plugin writes slices of the pool that is called as its node only"}
- {"expression": "request.operation == 'DELETE' || size(variables.written.spec.nodeName) > 237 || object.metadata.name == variables.written.spec.nodeName + '-sgx.confcom.dev'", "message": "the SGX device plugin writes slices of the name NODE-sgx.confcom.dev only"}
- {"expression": "request.operation == 'DELETE' || (size(variables.finalizers) == 0 && variables.owners.all(o, o.kind == 'Node' && o.apiVersion == 'v1' && o.name == variables.written.spec.nodeName))", "message": "the SGX device plugin's slice has no finalizers, and no owner but its node"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:sgx-device-plugin'"}]
{{- end }}
{{- define "policy.reserved" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}], "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["confcom-system"]}]}}
variables: []
validations:
- {"expression": "(object.spec.containers + object.spec.?initContainers.orValue([])).all(c, !('sgx.confcom.dev/quote-helper-epc' in c.?resources.?limits.orValue({})))", "message": "sgx.confcom.dev/quote-helper-epc is the quote helper's: request kubernetes.azure.com/sgx_epc_mem_in_MiB"}
- {"expression": "[request.namespace + '/*', request.namespace + '/' + object.spec.?serviceAccountName.orValue('default')].exists(g, g in '{{ join "," .root.Values.provisionGrants }}'.split(',')) || (object.spec.containers + object.spec.?initContainers.orValue([])).all(c, !('sgx.intel.com/provision' in c.?resources.?limits.orValue({})))", "message": "this service account has no grant for sgx.intel.com/provision (--provision-grants)"}
{{- end }}
{{- define "policy.own-node" -}}
failurePolicy: "Fail"
matchConstraints: {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]}]}
variables:
- {"name": "node", "expression": "dyn(object)"}
- {"name": "metadata", "expression": "dyn(object.?metadata.orValue({}))"}
- {"name": "labels", "expression": "dyn(object.?metadata.?labels.orValue({}))"}
- {"name": "annotations", "expression": "dyn(object.?metadata.?annotations.orValue({}))"}
- {"name": "status", "expression": "dyn(object.?status.orValue({}))"}
- {"name": "capacity", "expression": "dyn(object.?status.?capacity.orValue({}))"}
- {"name": "allocatable", "expression": "dyn(object.?status.?allocatable.orValue({}))"}
- {"name": "nodeBefore", "expression": "dyn(oldObject)"}
- {"name": "metadataBefore", "expression": "dyn(oldObject.?metadata.orValue({}))"}
- {"name": "labelsBefore", "expression": "dyn(oldObject.?metadata.?labels.orValue({}))"}
- {"name": "annotationsBefore", "expression": "dyn(oldObject.?metadata.?annotations.orValue({}))"}
- {"name": "statusBefore", "expression": "dyn(oldObject.?status.orValue({}))"}
- {"name": "capacityBefore", "expression": "dyn(oldObject.?status.?capacity.orValue({}))"}
- {"name": "allocatableBefore", "expression": "dyn(oldObject.?status.?allocatable.orValue({}))"}
- {"name": "size", "expression": "int(variables.labels[?'confcom.dev/sgx-epc-mib'].orValue('0'))"}
- {"name": "sizeBefore", "expression": "int(variables.labelsBefore[?'confcom.dev/sgx-epc-mib'].orValue('0'))"}
- {"name": "most", "expression": "int(double(variables.size) * double('{{ .root.Values.epc.overcommit }}') + 0.001)"}
- {"name": "boot", "expression": "object.status.?nodeInfo.?bootID.orValue('')"}
- {"name": "sizedAt", "expression": "variables.annotations[?'confcom.dev/sgx-epc-boot'].orValue('')"}
- {"name": "sizedAtBefore", "expression": "variables.annotationsBefore[?'confcom.dev/sgx-epc-boot'].orValue('')"}
{{- if eq .root.Values.platform "simulated" }}
- {"name": "simulated", "expression": "'{{ .root.Values.simulatedEpc }}'.split(',').map(s, s.replace('iB', '').replace('i', '')).map(s, quantity(s.matches('[KMGT]$') ? s + 'i' : s).asInteger() / 1048576).sum()"}
{{- end }}
validations:
- {"expression": "'authentication.kubernetes.io/node-name' in request.userInfo.extra && request.userInfo.extra['authentication.kubernetes.io/node-name'] == [object.metadata.name]", "message": "the SGX device plugin writes to the status of its own node only"}
- {"expression": "variables.node.all(k, k in ['metadata', 'status'] || (k in variables.nodeBefore && variables.nodeBefore[k] == variables.node[k])) && variables.nodeBefore.all(k, k in ['metadata', 'status'] || k in variables.node)", "message": "nothing of the node may change but metadata, status"}
- {"expression": "variables.metadata.all(k, k in ['labels', 'annotations', 'managedFields', 'resourceVersion', 'generation'] || (k in variables.metadataBefore && variables.metadataBefore[k] == variables.metadata[k])) && variables.metadataBefore.all(k, k in ['labels', 'annotations', 'managedFields', 'resourceVersion', 'generation'] || k in variables.metadata)", "message": "nothing of the metadata may change but labels, annotations, managedFields, resourceVersion, generation"}
- {"expression": "variables.status.all(k, k in ['capacity', 'allocatable'] || (k in variables.statusBefore && variables.statusBefore[k] == variables.status[k])) && variables.statusBefore.all(k, k in ['capacity', 'allocatable'] || k in variables.status)", "message": "nothing of the status may change but capacity, allocatable"}
- {"expression": "variables.capacity.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB'] || (k in variables.capacityBefore && variables.capacityBefore[k] == variables.capacity[k])) && variables.capacityBefore.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB'] || k in variables.capacity)", "message": "nothing of the capacity may change but kubernetes.azure.com/sgx_epc_mem_in_MiB"}
- {"expression": "variables.allocatable.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB'] || (k in variables.allocatableBefore && variables.allocatableBefore[k] == variables.allocatable[k])) && variables.allocatableBefore.all(k, k in ['kubernetes.azure.com/sgx_epc_mem_in_MiB'] || k in variables.allocatable)", "message": "nothing of the allocatable may change but kubernetes.azure.com/sgx_epc_mem_in_MiB"}
- {"expression": "variables.labels.all(k, k in ['confcom.dev/sgx-epc-mib', 'confcom.dev/sgx-epc-overcommit'] || (k in variables.labelsBefore && variables.labelsBefore[k] == variables.labels[k])) && variables.labelsBefore.all(k, k in ['confcom.dev/sgx-epc-mib', 'confcom.dev/sgx-epc-overcommit'] || k in variables.labels)", "message": "nothing of the labels may change but confcom.dev/sgx-epc-mib, confcom.dev/sgx-epc-overcommit"}
- {"expression": "variables.annotations.all(k, k in ['confcom.dev/sgx-epc-boot'] || (k in variables.annotationsBefore && variables.annotationsBefore[k] == variables.annotations[k])) && variables.annotationsBefore.all(k, k in ['confcom.dev/sgx-epc-boot'] || k in variables.annotations)", "message": "nothing of the annotations may change but confcom.dev/sgx-epc-boot"}
- {"expression": "variables.sizedAt == variables.boot || variables.sizedAt == variables.sizedAtBefore", "message": "confcom.dev/sgx-epc-boot is its boot id"}
{{- if eq .root.Values.platform "intel" }}
- {"expression": "variables.size <= variables.sizeBefore || (variables.sizedAt == variables.boot && variables.sizedAtBefore != variables.boot)", "message": "confcom.dev/sgx-epc-mib is the EPC that the node has: found once per boot, and only lowered until the next"}
{{- end }}
{{- if eq .root.Values.platform "simulated" }}
- {"expression": "variables.size <= variables.simulated", "message": "confcom.dev/sgx-epc-mib is the EPC that the node has: no more than simulatedEpc says"}
{{- end }}
- {"expression": "(variables.capacity[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0') == variables.capacityBefore[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0') || quantity(variables.capacity[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0')).compareTo(quantity(string(variables.most))) <= 0) && (variables.allocatable[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0') == variables.allocatableBefore[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0') || quantity(variables.allocatable[?'kubernetes.azure.com/sgx_epc_mem_in_MiB'].orValue('0')).compareTo(quantity(string(variables.most))) <= 0)", "message": "kubernetes.azure.com/sgx_epc_mem_in_MiB is no more than confcom.dev/sgx-epc-mib times the overcommit ratio"}
matchConditions: [{"name": "account", "expression": "request.userInfo.username == 'system:serviceaccount:confcom-system:sgx-device-plugin'"}]
{{- end }}
{{- define "condition.pods" -}}
"(has(object.metadata.annotations) && object.metadata.annotations.exists(key, key == \"confcom.dev/quote-mode\" || key == \"sgx.intel.com/quote-provider\" || key.startsWith(\"quote-mode.confcom.dev/\"))) || (has(object.spec.containers) && object.spec.containers.exists(c, (has(c.resources) && (has(c.resources.limits) && c.resources.limits.exists(name, name.contains(\"sgx\")))))) || (has(object.spec.initContainers) && object.spec.initContainers.exists(c, (has(c.resources) && (has(c.resources.limits) && c.resources.limits.exists(name, name.contains(\"sgx\")))))) || (has(object.spec.resourceClaims) && ((has(object.spec.containers) && object.spec.containers.exists(c, (has(c.env) && c.env.exists(variable, variable.name == \"SGX_AESM_ADDR\")))) || (has(object.spec.initContainers) && object.spec.initContainers.exists(c, (has(c.env) && c.env.exists(variable, variable.name == \"SGX_AESM_ADDR\"))))))"
{{- end }}
{{- define "condition.debug" -}}
"(has(object.spec.ephemeralContainers) && object.spec.ephemeralContainers.exists(c, (has(c.resources) && (has(c.resources.limits) && c.resources.limits.exists(name, name.contains(\"sgx\")))) || (has(c.env) && c.env.exists(variable, variable.name == \"SGX_AESM_ADDR\")) || (has(object.metadata.annotations) && (\"quote-mode.confcom.dev/\" + c.name) in object.metadata.annotations)))"
{{- end }}
