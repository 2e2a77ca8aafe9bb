"""Unmodified servers with the files of `confcom certificate --keep`: nginx, stunnel (Debian's packages) and Envoy.

Each answers `hello` to clients with a certificate of the same CA. Envoy and stunnel let in one service account alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import debian

PACKAGES = ("nginx", "stunnel4", "libwrap0", "libpcre2-8-0", "libnsl2", "libtirpc3", "busybox-static")
FOLDER = Path(__file__).resolve().parents[1] / "build" / "servers"
LIBRARIES = FOLDER / "usr" / "lib" / "x86_64-linux-gnu"

# A server learns of the renewed certificate as any server does: tls.crt is written last.
RELOAD = """
run=$1; shift
exec 3<&0
touch -r $tls/tls.crt $run/loaded
"$@" & server=$!
trap 'kill $server; wait $server; exit' TERM
while sleep 1 && kill -0 $server; do
    [ $tls/tls.crt -nt $run/loaded ] || continue
    touch -r $tls/tls.crt $run/loaded
    kill -HUP $server
done
"""

NGINX = """
daemon off;
pid $run/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path $run; proxy_temp_path $run; fastcgi_temp_path $run; uwsgi_temp_path $run; scgi_temp_path $run;
    server {
        listen $address ssl;
        ssl_certificate $tls/tls.crt;
        ssl_certificate_key $tls/tls.key;
        ssl_client_certificate $tls/ca.crt;
        ssl_verify_client on;
        return 200 "hello\\n";
    }
}
"""

STUNNEL = """
foreground = yes
pid =
syslog = no
[web]
accept = $address
cert = $tls/tls.crt
key = $tls/tls.key
CAfile = $tls/ca.crt
verifyChain = yes
checkHost = $client.$namespace.svc
connect = $backend
"""
# At HUP stunnel closes a listening socket of its own, and resets who waits in it; one that it inherited stays open.
STUNNEL_RUN = """
$busybox httpd -f -p $backend -h $run &
[ -S /dev/fd/3 ] && export LISTEN_PID=$$ LISTEN_FDS=1
exec $stunnel $run/stunnel.conf
"""

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_HTTP = "type.googleapis.com/envoy.extensions.filters"
ENVOY = f"""
node: {{id: web, cluster: web}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: $host, port_value: $port}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": {_TLS}.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - {{name: own, sds_config: {{path_config_source: {{path: $run/own.yaml}}, resource_api_version: V3}}}}
            validation_context_sds_secret_config:
              {{name: peers, sds_config: {{path_config_source: {{path: $run/peers.yaml}}, resource_api_version: V3}}}}
      filters:
      - name: http
        typed_config:
          "@type": {_HTTP}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          http_filters: [{{name: router, typed_config: {{"@type": {_HTTP}.http.router.v3.Router}}}}]
          route_config:
            virtual_hosts:
            - name: web
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: "hello\\n"}}}}}}]
"""
ENVOY_OWN = f"""
resources:
- "@type": {_TLS}.Secret
  name: own
  tls_certificate:
    certificate_chain: {{filename: $tls/tls.crt}}
    private_key: {{filename: $tls/tls.key}}
    watched_directory: {{path: $tls}}
"""
ENVOY_PEERS = f"""
resources:
- "@type": {_TLS}.Secret
  name: peers
  validation_context:
    trusted_ca: {{filename: $tls/ca.crt}}
    watched_directory: {{path: $tls}}
    match_typed_subject_alt_names:
    - {{san_type: URI, matcher: {{exact: "spiffe://cluster.local/ns/$namespace/sa/$client"}}}}
"""


class Server(NamedTuple):
    """Its files by name, its command, and whether it lets in one account alone; `$…` stand for values of `Place`."""

    files: Mapping[str, str]
    command: tuple[str, ...]
    knows_accounts: bool
    reloads: bool = False
    """Whether it notices new files itself."""
    inherits: bool = False
    """Whether it needs its listening socket from outside, as standard input: its own it closes when it is told."""


SERVERS = {
    "nginx": Server({"nginx.conf": NGINX}, ("$nginx", "-p", "$run", "-c", "$run/nginx.conf"), False),
    "stunnel": Server(
        {"stunnel.conf": STUNNEL, "index.html": "hello\n"},
        ("/bin/sh", "-c", STUNNEL_RUN), True, inherits=True,
    ),
    "envoy": Server(
        {"envoy.yaml": ENVOY, "own.yaml": ENVOY_OWN, "peers.yaml": ENVOY_PEERS},
        ("$envoy", "-c", "$run/envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"),
        True, reloads=True,
    ),
}  # fmt: skip


def programs() -> dict[str, Path]:
    """The servers' programs; Debian's packages are unpacked into build/ once, which needs no root."""
    if not (FOLDER / "bin" / "busybox").exists():
        lacking = debian.unpack(FOLDER, *PACKAGES)
        assert not lacking, lacking
    found = {"nginx": FOLDER / "usr" / "sbin" / "nginx", "stunnel": FOLDER / "usr" / "bin" / "stunnel4"}
    found["busybox"] = FOLDER / "bin" / "busybox"
    spec = importlib.util.find_spec("envoy")
    if spec is not None and spec.origin is not None:
        found["envoy"] = Path(spec.origin).parent / "_bin" / "envoy"
    return found


def environment() -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES)}


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with values for `$name`."""
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    return text


def command(name: str, values: Mapping[str, str]) -> list[str]:
    """What starts the server, and reloads it where it has to be told."""
    server = SERVERS[name]
    words = [filled(word, values) for word in server.command]
    watch = filled(RELOAD, {"tls": values["tls"]})
    return words if server.reloads else ["/bin/sh", "-c", watch, "sh", values["run"], *words]
