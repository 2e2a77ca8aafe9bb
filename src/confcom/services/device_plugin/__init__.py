"""The device plugin: EPC as a resource, and the SGX devices, towards the kubelet and the API."""
