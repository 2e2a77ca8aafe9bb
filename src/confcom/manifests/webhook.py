"""The admission webhook: its Deployment, and the two configurations that send SGX pods to it."""

from __future__ import annotations

from confcom.manifests import objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, WEBHOOK, Component, IssuingCa, Object, global_object
from confcom.protocols import admission

CA_SECRET = "sgx-webhook-ca"  # noqa: S105 - a name
CA_FOLDER = "/etc/confcom/webhook-ca"
CLIENT_CA_FOLDER = "/etc/confcom/client-ca"
HTTPS_PORT = 8443
HTTP_PORT = 9464
_ADMISSION = "admissionregistration.k8s.io"


def webhook(config: AddonConfig, ca: IssuingCa | None) -> list[Object]:
    """Every object of the webhook, its configurations last, so that it can answer by then.

    The installer writes the CA: a webhook that could write it could rewrite the configurations too. Without `ca` its
    Secret is not rendered; another tool makes it.
    """
    settings = {
        "namespace": NAMESPACE,
        "service": WEBHOOK.name,
        "ca": CA_FOLDER,
        "provision_grants": ",".join(config.provision_grants),
        "oversized": config.oversized,
        "quote_helper": "true" if config.quote_helper else "false",
        "wiring": "plugin",
    }
    volumes = [objects.secret_volume("ca", CA_SECRET, CA_FOLDER)]
    if config.webhook_client_ca:
        settings["client_ca"] = f"{CLIENT_CA_FOLDER}/ca.crt"
        volumes.append(objects.volume("client-ca", CLIENT_CA_FOLDER, configMap={"name": config.webhook_client_ca}))
    component = Component(
        workload=WEBHOOK,
        replicas=config.webhook_replicas,
        settings=settings,
        ports={"https": HTTPS_PORT, "http": HTTP_PORT},
        called="https",
        service_port=admission.ServiceClient().port,
        requests=objects.resources("50m", "96Mi", "384Mi"),
        volumes=volumes,
        cluster_rules=[objects.rule("", ["nodes"], ["get", "list", "watch"])],
    )
    return [
        *objects.ca_secrets(WEBHOOK, (CA_SECRET,), {} if ca is None else {CA_SECRET: ca}),
        *component.objects(config),
        *_configurations(config, None if ca is None else ca.bundle),
    ]


def _configurations(config: AddonConfig, bundle: bytes | None) -> list[Object]:
    client, labelled = admission.ServiceClient(), config.webhook_namespaces == "labelled"
    return [
        global_object(
            f"{_ADMISSION}/v1",
            kind,
            admission.CONFIGURATION,
            WEBHOOK.component,
            webhooks=entries(client, ca_bundle=bundle, labelled=labelled),
        )
        for kind, entries in (
            ("MutatingWebhookConfiguration", admission.mutating_webhooks),
            ("ValidatingWebhookConfiguration", admission.validating_webhooks),
        )
    ]
