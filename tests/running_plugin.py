"""A device plugin in a thread of its own, on a node that was declared, and where to find what it said."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from confcom.devices.host import Host
from confcom.devices.sgx_node import declare_node, parse_epc_sizes
from confcom.services.device_plugin.kubelet_plugin import PluginEvent
from confcom.services.device_plugin.plugin import DevicePluginConfig, serve
from kubelet_emulator import KubeletEmulator, wait_until

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
ENCLAVE = "sgx.intel.com/enclave"
FAST: dict[str, Any] = {
    "watch_interval": 0.02,
    "health_interval": 0.05,
    "retry_initial": 0.01,
    "retry_max": 0.05,
    "register_timeout": 5.0,
    "publish_interval": 0.02,
}


class RunningPlugin:
    """Use as a context; the plugin's failure, if any, is raised at the end unless it was taken with `failure`."""

    def __init__(
        self,
        folder: Path,
        kubelet: KubeletEmulator,
        *,
        epc: str = "168Mi",
        host: Host | None = None,
        **settings: Any,
    ) -> None:
        self.root = folder / "node"
        self.host = host if host is not None else declare_node(self.root, parse_epc_sizes(epc), b"a machine\n")
        paths = {
            "plugin_dir": str(kubelet.plugin_dir),
            "registry_dir": str(kubelet.registry_dir),
            "pod_resources_socket": str(kubelet.pod_resources_socket),
        }
        self.config = DevicePluginConfig(**(paths | FAST | settings))
        self.events: list[PluginEvent] = []
        self.started: list[str] = []
        self.error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._work, name="device-plugin", daemon=True)

    def __enter__(self) -> RunningPlugin:
        self._thread.start()
        assert self._running.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self.error is not None:
            raise self.error

    def stop(self) -> None:
        """As after SIGTERM; waits for the end."""
        if self._thread.is_alive():
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def failure(self) -> BaseException:
        """Wait until it ends by itself, and take the reason."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "it runs on"
        error, self.error = self.error, None
        assert error is not None
        return error

    def fields(self, name: str, of: str = "") -> list[dict[str, Any]]:
        """What every event of that name (and resource) said."""
        return [dict(event.fields) for event in list(self.events) if event.name == name and of in ("", event.resource)]

    def wait_event(self, name: str, count: int = 1, timeout: float = 60, of: str = "") -> dict[str, Any]:
        """The count-th event of that name (and resource)."""
        wait_until(lambda: len(self.fields(name, of)) >= count, timeout)
        return self.fields(name, of)[count - 1]

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error
            self._running.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._running.set()
        await serve(
            self.host,
            self.config,
            stop=self._stop,
            started=self.started.append,
            observe=self.events.append,
        )
