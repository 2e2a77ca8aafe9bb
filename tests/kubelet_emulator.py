"""The kubelet's side of the device plugin API, to the letter of its v1.36 behaviour, on Google's gRPC library.

It serves Registration at kubelet.sock and the podresources API, looks into its registry directory for plugins, dials
them with the authority `localhost` and a receive limit of 4 MiB, asks for options, holds the ListAndWatch stream, and
keeps books of devices and pods in a checkpoint that outlives a restart. A restart wipes every socket in its directory.
"""

from __future__ import annotations

import json
import random
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb
from confcom.protocols._pb import kubelet_plugin_registration_pb2 as registration_pb
from confcom.protocols._pb import kubelet_podresources_pb2 as podresources_pb

RECEIVE_LIMIT = 4 * 1024 * 1024
DIAL_TIMEOUT = 10.0
_EXTENDED_NAME = re.compile(
    r"(?!requests\.)(?![^/]*kubernetes\.io/)[a-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
)


class AdmissionError(Exception):
    """The pod is not admitted (UnexpectedAdmissionError), or its container not started."""


@dataclass
class Endpoint:
    """One plugin that registered: its connection, its stream, and what it said there last."""

    resource: str
    channel: grpc.Channel
    options: pb.DevicePluginOptions
    stream: Any = None
    alive: bool = True
    error: str = ""
    sizes: list[int] = field(default_factory=list)


@dataclass
class Resource:
    """The kubelet's books of one resource."""

    healthy: set[str] = field(default_factory=set)
    unhealthy: set[str] = field(default_factory=set)
    numa: dict[str, int] = field(default_factory=dict)


class KubeletEmulator:
    """One kubelet. Blocking; everything may be called from any thread."""

    def __init__(self, folder: Path, *, seed: int = 1) -> None:
        self.plugin_dir = folder / "device-plugins"
        self.registry_dir = folder / "plugins_registry"
        self.pod_resources_socket = folder / "pod-resources" / "kubelet.sock"
        for directory in (self.plugin_dir, self.registry_dir, self.pod_resources_socket.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.plugin_dir / "kubelet_internal_checkpoint"
        self.changed = threading.Condition()
        self.endpoints: dict[str, Endpoint] = {}
        self.resources: dict[str, Resource] = {}
        self.pods: dict[str, dict[str, list[str]]] = {}
        self.registrations: Counter[str] = Counter()
        """Per resource."""
        self.refused: list[str] = []
        self.allocate_calls = 0
        self.streams_to_drop = 0
        """So many streams end before their Register returns."""
        self._random = random.Random(seed)
        self._server: grpc.Server | None = None
        self._threads: list[threading.Thread] = []
        self._dialing: set[grpc.Channel] = set()
        self._connected: list[Endpoint] = []
        self._stop = threading.Event()

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As a kubelet process starts: wipe sockets, read the checkpoint, serve."""
        for path in self.plugin_dir.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        self.pod_resources_socket.unlink(missing_ok=True)
        if self.checkpoint.exists():
            self.pods = json.loads(self.checkpoint.read_text())
        self.resources = {}
        self.endpoints = {}
        self._stop = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4), handlers=[self._registration(), self._pod_resources()]
        )
        self._server.add_insecure_port(f"unix:{self.plugin_dir / 'kubelet.sock'}")
        self._server.add_insecure_port(f"unix:{self.pod_resources_socket}")
        self._server.start()
        self._spawn(self._watch_registry, self._stop)

    def stop(self) -> None:
        """As its process ends: every connection breaks."""
        assert self._server is not None
        self._stop.set()
        self._server.stop(0).wait()
        for channel in list(self._dialing):
            channel.close()
        while waiting := [thread for thread in self._threads if thread.is_alive()]:
            # A plugin that was being met may have been connected meanwhile, also one that another has followed since;
            # and a stream that begins while its channel closes is ended by nobody else.
            for endpoint in list(self._connected):
                self._disconnect(endpoint)
                if endpoint.stream is not None:
                    endpoint.stream.cancel()
            waiting[0].join(0.1)
        self._threads = []
        self._connected = []

    def restart(self) -> None:
        """Both; pods go on."""
        self.stop()
        self.start()

    def lose_stream(self, resource: str) -> None:
        """Cancel the stream as after an error, while the kubelet lives on."""
        self.endpoints[resource].stream.cancel()

    # --- what a node status says ------------------------------------------------------------------------------------

    def capacity(self, resource: str) -> int:
        with self.changed:
            books = self.resources.get(resource, Resource())
            return len(books.healthy) + len(books.unhealthy)

    def allocatable(self, resource: str) -> int:
        with self.changed:
            return len(self.resources.get(resource, Resource()).healthy)

    def wait(self, condition: Callable[[], object], timeout: float = 60, what: str = "") -> None:
        """Until a condition on this emulator holds."""
        with self.changed:
            if not self.changed.wait_for(lambda: condition(), timeout):
                raise AssertionError(f"not within {timeout} s: {what or condition}")

    def wait_allocatable(self, resource: str, count: int, timeout: float = 60) -> None:
        self.wait(
            lambda: len(self.resources.get(resource, Resource()).healthy) == count,
            timeout,
            f"{count} of {resource} (there are {self.allocatable(resource)})",
        )

    # --- pods -------------------------------------------------------------------------------------------------------

    def admit(self, pod: str, resource: str, count: int) -> pb.ContainerAllocateResponse:
        """Choose devices as the device manager does, have them allocated, and book them. `pod` is namespace/name."""
        with self.changed:
            books = self.resources.get(resource, Resource())
            endpoint = self.endpoints.get(resource)
            taken = {unit for held in self.pods.values() for unit in held.get(resource, [])}
            free = sorted(books.healthy - taken)
        self._random.shuffle(free)
        if endpoint is None or not endpoint.alive or len(free) < count:
            raise AdmissionError(f"requested number of devices unavailable: {count}, available: {len(free)}")
        ids = self._prefer(endpoint, free, count) if endpoint.options.get_preferred_allocation_available else free
        chosen = ids[:count]
        answer = self._allocate(endpoint, chosen)
        with self.changed:
            self.pods.setdefault(pod, {})[resource] = chosen
            self._write_checkpoint()
        return answer

    def start_container(self, pod: str, resource: str) -> None:
        """PreStartContainer, if the plugin wants it."""
        endpoint = self.endpoints[resource]
        if not endpoint.options.pre_start_required:
            return
        request = pb.PreStartContainerRequest(devices_ids=self.pods[pod][resource])
        self._call(endpoint, "PreStartContainer", request, pb.PreStartContainerResponse)

    def remove(self, pod: str) -> None:
        """The pod is gone, its devices are free."""
        with self.changed:
            self.pods.pop(pod)
            self._write_checkpoint()

    def _prefer(self, endpoint: Endpoint, free: list[str], count: int) -> list[str]:
        request = pb.PreferredAllocationRequest()
        request.container_requests.add(available_deviceIDs=free, allocation_size=count)
        answer = self._call(endpoint, "GetPreferredAllocation", request, pb.PreferredAllocationResponse)
        preferred = [unit for unit in answer.container_responses[0].deviceIDs if unit in set(free)]
        return preferred + [unit for unit in free if unit not in set(preferred)]

    def _allocate(self, endpoint: Endpoint, ids: list[str]) -> pb.ContainerAllocateResponse:
        request = pb.AllocateRequest()
        request.container_requests.add(devices_ids=ids)
        self.allocate_calls += 1
        answer = self._call(endpoint, "Allocate", request, pb.AllocateResponse)
        if len(answer.container_responses) != 1:
            raise AdmissionError("no containers in allocation response")
        return answer.container_responses[0]

    def _call(self, endpoint: Endpoint, name: str, request: Any, answer: Any) -> Any:
        method = endpoint.channel.unary_unary(
            f"/v1beta1.DevicePlugin/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return method(request, timeout=60)
        except grpc.RpcError as error:
            raise AdmissionError(f"{name} failed: {error.code().name}: {error.details()}") from error

    def _write_checkpoint(self) -> None:
        draft = self.checkpoint.with_suffix(".new")
        draft.write_text(json.dumps(self.pods))
        draft.rename(self.checkpoint)

    # --- plugins ----------------------------------------------------------------------------------------------------

    def _registration(self) -> grpc.GenericRpcHandler:
        def register(request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.Empty:
            problem = self._problem(request.version, request.resource_name)
            if not problem:
                problem = self._connect(request.resource_name, self.plugin_dir / request.endpoint)
            if problem:
                self.refused.append(problem)
                context.abort(grpc.StatusCode.UNKNOWN, problem)
            return pb.Empty()

        method = grpc.unary_unary_rpc_method_handler(
            register, pb.RegisterRequest.FromString, pb.Empty.SerializeToString
        )
        return grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": method})

    def _problem(self, version: str, resource: str) -> str:
        if version != "v1beta1":
            return f"requested API version {version!r} is not supported by kubelet"
        if _EXTENDED_NAME.fullmatch(resource) is None:
            return f"the ResourceName {resource!r} is invalid"
        return ""

    def _connect(self, resource: str, socket: Path) -> str:
        channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", RECEIVE_LIMIT),
                ("grpc.default_authority", "localhost"),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._dialing.add(channel)
        try:
            ask = channel.unary_unary(
                "/v1beta1.DevicePlugin/GetDevicePluginOptions",
                request_serializer=pb.Empty.SerializeToString,
                response_deserializer=pb.DevicePluginOptions.FromString,
            )
            options = ask(pb.Empty(), timeout=DIAL_TIMEOUT, wait_for_ready=True)
        except (grpc.RpcError, ValueError) as error:
            channel.close()
            return f"failed to dial device plugin: {error}"
        finally:
            self._dialing.discard(channel)
        endpoint = Endpoint(resource, channel, options)
        self._connected.append(endpoint)
        with self.changed:
            self.registrations[resource] += 1
            self.endpoints[resource] = endpoint
            self.changed.notify_all()
        self._spawn(self._list_and_watch, endpoint)
        if self.streams_to_drop:
            self.streams_to_drop -= 1
            self.wait(lambda: endpoint.sizes)
            endpoint.stream.cancel()
            self.wait(lambda: not endpoint.alive)
        return ""

    def _list_and_watch(self, endpoint: Endpoint) -> None:
        watch = endpoint.channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch",
            request_serializer=pb.Empty.SerializeToString,
            response_deserializer=lambda data: (len(data), pb.ListAndWatchResponse.FromString(data)),
        )
        try:
            endpoint.stream = watch(pb.Empty())
            for size, response in endpoint.stream:
                self._take(endpoint, size, response)
        except (grpc.RpcError, ValueError) as error:
            endpoint.error = str(error)
        self._disconnect(endpoint)

    def _take(self, endpoint: Endpoint, size: int, response: pb.ListAndWatchResponse) -> None:
        books = Resource()
        for device in response.devices:
            (books.healthy if device.health == "Healthy" else books.unhealthy).add(device.ID)
            if device.HasField("topology"):
                assert device.topology.nodes, "an empty topology makes kubelets reject pods"
                books.numa[device.ID] = device.topology.nodes[0].ID
        with self.changed:
            endpoint.sizes.append(size)
            if self.endpoints.get(endpoint.resource) is endpoint:
                self.resources[endpoint.resource] = books
                self._write_checkpoint()
            self.changed.notify_all()

    def _disconnect(self, endpoint: Endpoint) -> None:
        """All devices of a plugin whose stream ended are unhealthy at once."""
        with self.changed:
            endpoint.alive = False
            if self.endpoints.get(endpoint.resource) is endpoint and endpoint.resource in self.resources:
                books = self.resources[endpoint.resource]
                books.unhealthy |= books.healthy
                books.healthy = set()
            self.changed.notify_all()
        endpoint.channel.close()

    def _watch_registry(self, stop: threading.Event) -> None:
        """The plugin watcher: asks each socket that appears in the registry directory who it is."""
        seen: dict[str, tuple[int, int]] = {}
        while not stop.wait(0.02):
            found = {}
            try:
                paths = list(self.registry_dir.iterdir())
            except FileNotFoundError:
                # A test that failed took its folder away; its own failure is what people should read.
                return
            for path in paths:
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISSOCK(status.st_mode):
                    found[path.name] = (status.st_ino, status.st_ctime_ns)
            for name in found.keys() - {name for name in seen if seen[name] == found.get(name)}:
                self._meet(self.registry_dir / name)
            seen = found

    def _meet(self, socket: Path) -> None:
        with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                info = channel.unary_unary(
                    "/pluginregistration.Registration/GetInfo",
                    request_serializer=registration_pb.InfoRequest.SerializeToString,
                    response_deserializer=registration_pb.PluginInfo.FromString,
                )(registration_pb.InfoRequest(), timeout=60, wait_for_ready=True)
                problem = self._take_plugin(info, Path(info.endpoint or socket))
                channel.unary_unary(
                    "/pluginregistration.Registration/NotifyRegistrationStatus",
                    request_serializer=registration_pb.RegistrationStatus.SerializeToString,
                    response_deserializer=registration_pb.RegistrationStatusResponse.FromString,
                )(registration_pb.RegistrationStatus(plugin_registered=not problem, error=problem), timeout=60)
            except grpc.RpcError:
                return

    def _take_plugin(self, info: registration_pb.PluginInfo, endpoint: Path) -> str:
        if info.type != "DevicePlugin":
            return f"no handler for plugin type {info.type!r}"
        return self._problem(info.supported_versions[0], info.name) or self._connect(info.name, endpoint)

    # --- podresources -----------------------------------------------------------------------------------------------

    def _pod_resources(self) -> grpc.GenericRpcHandler:
        def listing(request: Any, context: Any) -> podresources_pb.ListPodResourcesResponse:
            answer = podresources_pb.ListPodResourcesResponse()
            with self.changed:
                for pod, held in self.pods.items():
                    namespace, name = pod.split("/")
                    container = answer.pod_resources.add(namespace=namespace, name=name).containers.add(name="main")
                    for resource, ids in held.items():
                        # As the real one: an entry for each device.
                        for unit in ids:
                            container.devices.add(resource_name=resource, device_ids=[unit])
            return answer

        method = grpc.unary_unary_rpc_method_handler(
            listing,
            podresources_pb.ListPodResourcesRequest.FromString,
            podresources_pb.ListPodResourcesResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": method})

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, args=arguments, name=work.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()


def wait_until(condition: Callable[[], object], timeout: float = 60) -> None:
    """Poll something outside the emulator."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
