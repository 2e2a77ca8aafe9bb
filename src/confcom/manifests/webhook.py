"""The admission webhook: pods of the least kind, and the two configurations that send SGX pods to them."""

from __future__ import annotations

from confcom.manifests import rbac
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    NAMESPACE,
    TMP,
    WEBHOOK,
    Object,
    confined,
    container,
    deployment,
    global_object,
    http_probes,
    mount,
    namespaced_object,
    resources,
    selector,
    service,
    service_account,
    settings,
    tmp_volume,
)
from confcom.protocols import admission_rules

TLS_SECRET = "sgx-webhook-tls"  # noqa: S105 - a name
HTTPS_PORT = 8443
HTTP_PORT = 9464
_ADMISSION = "admissionregistration.k8s.io"


def webhook(config: AddonConfig) -> list[Object]:
    """Everything but network policy; the configurations last, so that there is somebody to ask."""
    return [
        service_account(WEBHOOK, token=True),
        # Empty: the webhook makes its certificates itself, and nothing that is applied here takes them away.
        namespaced_object("v1", "Secret", TLS_SECRET, WEBHOOK.component, type="Opaque"),
        *_rights(),
        service(WEBHOOK, admission_rules.ServiceClient().port, "https"),
        _disruption_budget(),
        deployment(WEBHOOK, _pod(config), replicas=config.webhook_replicas),
        *_configurations(config),
    ]


def _rights() -> list[Object]:
    own = [admission_rules.CONFIGURATION]
    kinds = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
    return [
        *rbac.role(WEBHOOK, [rbac.rule("", ["secrets"], ["get", "patch"], [TLS_SECRET])]),
        *rbac.cluster_role(
            WEBHOOK,
            [
                rbac.rule("", ["nodes"], ["get", "list", "watch"]),
                rbac.rule(_ADMISSION, kinds, ["get", "patch"], own),
            ],
        ),
    ]


def _pod(config: AddonConfig) -> Object:
    return {
        "automountServiceAccountToken": True,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 30,
        "containers": [
            container(
                config,
                WEBHOOK.component,
                ["webhook"],
                env=settings("webhook", _values(config)),
                ports=[
                    {"name": "https", "containerPort": HTTPS_PORT, "protocol": "TCP"},
                    {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
                ],
                resources=resources("50m", "96Mi", "384Mi"),
                securityContext=confined(),
                volumeMounts=[mount("tmp", TMP)],
                **http_probes("http"),
            )
        ],
        "volumes": [tmp_volume()],
    }


def _values(config: AddonConfig) -> dict[str, str]:
    return {
        "listen": f"[::]:{HTTPS_PORT}",
        "http": f"[::]:{HTTP_PORT}",
        "namespace": NAMESPACE,
        "service": WEBHOOK.name,
        "secret": TLS_SECRET,
        "configuration": admission_rules.CONFIGURATION,
        "provision_grants": ",".join(config.provision_grants),
        "oversized": config.oversized,
        "quote_helper": "true" if config.quote_helper else "false",
        "wiring": "plugin",
    }


def _disruption_budget() -> Object:
    """One at a time; with a single replica this lets a node be drained, and SGX pods wait for a moment."""
    return namespaced_object(
        "policy/v1",
        "PodDisruptionBudget",
        WEBHOOK.name,
        WEBHOOK.component,
        spec={"maxUnavailable": 1, "selector": {"matchLabels": selector(WEBHOOK.component)}},
    )


def _configurations(config: AddonConfig) -> list[Object]:
    client, labelled = admission_rules.ServiceClient(), config.webhook_namespaces == "labelled"
    # By name, as the webhook names them when it adds its CA: whoever applies a list also decides on its order.
    return [
        global_object(
            f"{_ADMISSION}/v1",
            kind,
            admission_rules.CONFIGURATION,
            WEBHOOK.component,
            webhooks=sorted(entries(client, labelled=labelled), key=lambda entry: entry["name"]),
        )
        for kind, entries in (
            ("MutatingWebhookConfiguration", admission_rules.mutating_webhooks),
            ("ValidatingWebhookConfiguration", admission_rules.validating_webhooks),
        )
    ]
