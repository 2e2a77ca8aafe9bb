"""What an account may do at a Kubernetes API: every verb of every resource is tried with its own token, and dry."""

from __future__ import annotations

import json
import ssl
from base64 import b64decode
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2

from kubectl import ADDON_NAMESPACE, Kubectl

ANY = "any-name"
_COLLECTION = {"list": "GET", "watch": "GET", "create": "POST", "deletecollection": "DELETE"}
_OBJECT = {"get": "GET", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
SELF = ("authentication.k8s.io", "authorization.k8s.io")
"""Groups in which every account may ask who it is and what it may do."""


class Right(NamedTuple):
    """A verb on a resource, `pods` or `pods/log`, of a group."""

    verb: str
    group: str
    resource: str


class Account:
    """A service account of the add-on's namespace, with a token of its own, bound to a pod if one is named.

    Use as a context.
    """

    def __init__(self, cluster: Kubectl, name: str, folder: Path, *, pod: str = "") -> None:
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}") if pod else ()
        token = cluster("create", "token", name, "-n", ADDON_NAMESPACE, *bound).strip()
        config = json.loads(cluster("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        config["users"][0]["user"] = {"token": token}
        path = folder / f"{name}{'-bound' if pod else ''}.json"
        path.write_text(json.dumps(config))
        self.kubectl = Kubectl(cluster.program, str(path))
        server = config["clusters"][0]["cluster"]
        trusted = ssl.create_default_context(cadata=b64decode(server["certificate-authority-data"]).decode())
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx2.Client(verify=trusted, base_url=server["server"], headers=headers, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def write(self, verb: str, path: str, change: dict[str, Any]) -> str:
        """What comes of a dry run of a write: nothing, or the API server's words."""
        kind = {"POST": "application/json", "PATCH": "application/merge-patch+json"}[verb]
        answer = self.client.request(
            verb, path, params={"dryRun": "All"}, headers={"Content-Type": kind}, content=json.dumps(change)
        )
        return "" if answer.is_success else str(answer.json().get("message"))

    def rights(self, resources: list[tuple[str, str, dict[str, Any]]], *, name: str = ANY) -> set[Right]:
        """Everything that is not forbidden, on objects called `name`."""
        found = set()
        for base, group, one in resources:
            for verb in one["verbs"]:
                if self._may(verb, base, one, name):
                    found.add(Right(verb, group, one["name"]))
        return found

    def _may(self, verb: str, base: str, one: dict[str, Any], name: str) -> bool:
        resource, _, part = one["name"].partition("/")
        place = f"{base}/namespaces/{ADDON_NAMESPACE}" if one["namespaced"] else base
        path = f"{place}/{resource}" if verb in _COLLECTION and not part else f"{place}/{resource}/{name}"
        query = {"watch": "1", "timeoutSeconds": "1"} if verb == "watch" else {"limit": "1"}
        query |= {} if verb in ("get", "list", "watch") else {"dryRun": "All"}
        method = (_COLLECTION | _OBJECT)[verb]
        content = None if method in ("GET", "DELETE") else "{}"
        url = f"{path}/{part}" if part else path
        return self.client.request(method, url, params=query, content=content).status_code != 403


def resources_of(cluster: Kubectl) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, group and entry of every resource of the API, subresources too."""
    groups = json.loads(cluster("get", "--raw", "/apis"))["groups"]
    places = [("/api/v1", "")] + [(f"/apis/{v['groupVersion']}", g["name"]) for g in groups for v in g["versions"]]
    found = []
    for base, group in places:
        if group not in SELF:
            entries = json.loads(cluster("get", "--raw", base))["resources"]
            found += [(base, group, one) for one in entries]
    return found
