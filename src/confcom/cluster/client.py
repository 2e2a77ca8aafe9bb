"""A client of the Kubernetes API, and its failures as ours. lightkube (extra `kube`) is imported in this package alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError, LoadResourceError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from confcom.errors import ClusterError, ClusterRefused, ConfigError

_ADVICE = "Give the pod a service account, or name a kubeconfig."


def open_client(
    kubeconfig: str | None = None, *, context: str | None = None, field_manager: str = "confcom"
) -> AsyncClient:
    """A client; without `kubeconfig`, in-cluster credentials, else those of $KUBECONFIG or the user's file.

    The token of a service account is read once, here: whoever runs for long makes a new client every now and then.
    """
    try:
        config = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
        return AsyncClient(config=config.get(context_name=context), field_manager=field_manager)
    except (LightkubeConfigError, OSError) as error:
        raise ConfigError(f"no way to the Kubernetes API: {error}", advice=_ADVICE) from error


@contextmanager
def cluster_errors(what: str, *, advice: str | None = None) -> Iterator[None]:
    """Turn failures of the API into `ClusterRefused` (the server said no) or `ClusterError` (it did not answer)."""
    try:
        yield
    except ApiError as error:
        status = error.status
        kind = ClusterRefused if status.code is not None and 400 <= status.code < 500 else ClusterError
        raise kind(
            f"{what}: {status.message or error}", status=status.code, reason=status.reason, advice=advice
        ) from error
    except (httpx2.HTTPError, LoadResourceError) as error:
        raise ClusterError(f"{what}: {str(error) or type(error).__name__}", advice=advice) from error
