"""Administrators of the attestation service: by bearer tokens, OIDC tokens and client certificates."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import OctKey

from confcom.errors import ConfigError
from confcom.pki.serving_pair import Authority
from confcom.services.attestation.administrators import (
    ASK_AGAIN,
    KEYS_FOR,
    Administrators,
    IssuerUnavailable,
    NotAnAdministrator,
)
from confcom.services.attestation.attestation_service import LOOK_AT_FILES
from confcom.services.attestation.signing_keys import make_key
from confcom.services.runtime.tls import MAX_PEM_FILE, WATCH_INTERVAL
from confcom.tokens.jws import SigningKey, unsecured
from confcom.tokens.policy_jws import wrap
from running_attestation_service import (
    API,
    NOW,
    TOKEN,
    RunningAttestation,
    free_port,
    make_world,
    running_attestation,
)
from running_collateral_service import Clock

DAY = timedelta(days=1)
PERMIT = "version=1.0; authorizationrules{=> permit();}; issuancerules{};"
POLICY = f"/policies/SgxEnclave?{API}"
HASH = hashlib.sha512(TOKEN.encode()).hexdigest()


def _pair(folder: Path, authority: Authority, name: str, at: datetime) -> tuple[Path, Path]:
    pair = authority.issue(("127.0.0.1",), now=at, lifetime=DAY, common_name=name)
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    return certificate, key


class Issuer:
    """An OIDC issuer on loopback, over TLS; `document` and `keys` are what it serves."""

    def __init__(self, folder: Path) -> None:
        now = datetime.fromtimestamp(time.time(), UTC)
        authority = Authority.make("issuer", now=now, lifetime=DAY)
        self.ca = folder / "issuer-ca.pem"
        self.ca.write_bytes(authority.certificate)
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.piece, self.pause = 1 << 20, 0.0
        self.signing = _signing_key(folder / "one")
        self.keys: Any = {"keys": [self.signing.jwk()]}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                issuer.go_on.wait(60)
                content = json.dumps(issuer.keys if self.path == "/keys" else issuer.document).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for start in range(0, len(content), issuer.piece):
                    self.wfile.write(content[start : start + issuer.piece])
                    time.sleep(issuer.pause)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*_pair(folder, authority, "issuer", now))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.document: Any = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, at: datetime, **changes: Any) -> str:
        issued = int(at.timestamp())
        claims = {"iss": self.url, "aud": "confcom", "sub": "alice", "iat": issued, "exp": issued + 300} | changes
        return self.signing.sign(claims, {"typ": "JWT"})


def _signing_key(folder: Path) -> SigningKey:
    folder.mkdir(exist_ok=True)
    return SigningKey.from_pem(make_key(folder, "rsa", NOW, simulated=False).read_bytes(), "")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    running = Issuer(tmp_path)
    yield running
    running.close()


def _file(folder: Path, text: str) -> Path:
    path = folder / "administrators.toml"
    path.write_text(text)
    return path


def _with_oidc(folder: Path, issuer: Issuer, more: str = "") -> Path:
    return _file(
        folder,
        f"""
        oidc = {{ issuer = "{issuer.url}", audience = "confcom", ca = "{issuer.ca.name}" {more} }}
        [[administrators]]
        name = "Alice"
        role = "contributor"
        claims = {{ sub = "alice" }}
        [[administrators]]
        name = "auditors"
        claims = {{ groups = "audit", tenant = "t" }}
        """,
    )


def _identify(administrators: Administrators, token: str) -> str:
    found = asyncio.run(administrators.by_token(f"Bearer {token}"))
    return f"{found.name} {found.role}"


def test_the_first_administrator_is_in_a_file(tmp_path: Path) -> None:
    file = _file(tmp_path, f'administrators = [{{ name = "first", role = "contributor", token_hash = "{HASH}" }}]')
    with running_attestation(tmp_path, make_world(), administrators=str(file), admin_token_hash=None) as service:
        assert service.administer("/policies/SgxEnclave", wrap(PERMIT), method="PUT").status == 200
        refused = service.ask(POLICY, Authorization="Bearer wrong")
        assert (refused.status, refused.error["code"]) == (401, "Unauthorized")
        assert "bearer token of an administrator" not in refused.error["message"]
        assert "client certificate is missing" in service.ask(POLICY).error["message"]


def test_readers_change_nothing(tmp_path: Path) -> None:
    file = _file(tmp_path, f'administrators = [{{ name = "auditor", token_hash = "{HASH}" }}]')
    with running_attestation(tmp_path, make_world(), administrators=str(file), admin_token_hash=None) as service:
        assert service.administer("/policies/SgxEnclave").status == 200
        assert service.administer("/policies/SgxEnclave:dryRun", PERMIT).status == 200
        assert service.administer("/audit").status == 200
        for path, method in (
            ("/policies/SgxEnclave", "PUT"),
            ("/policies/SgxEnclave:reset", "POST"),
            ("/certificates:add", "POST"),
            ("/certificates:remove", "POST"),
        ):
            refused = service.administer(path, wrap(PERMIT), method=method)
            assert (refused.status, refused.error["code"]) == (403, "Forbidden"), path
            assert "'auditor' is a reader" in refused.error["message"]


def test_a_change_has_the_name_of_the_administrator(tmp_path: Path, issuer: Issuer) -> None:
    file = _with_oidc(tmp_path, issuer)
    with running_attestation(tmp_path, make_world(), administrators=str(file)) as service:
        put = service.ask(POLICY, PERMIT, method="PUT", Authorization=f"Bearer {issuer.token(NOW)}")
        assert put.status == 200
        assert service.administer("/policies/SgxEnclave:reset", "eyJhbGciOiJub25lIn0..").status == 200
        with closing(sqlite3.connect(service.config.store)) as connection, connection:
            rows = connection.execute("SELECT administrator FROM policy_change ORDER BY id").fetchall()
        assert rows == [("Alice",), ("token",)]


def test_tokens_of_the_pinned_issuer(tmp_path: Path, issuer: Issuer) -> None:
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    assert _identify(administrators, issuer.token(NOW)) == "Alice contributor"
    listed = issuer.token(NOW, sub="bob", groups=["x", "audit"], tenant="t", aud=["other", "confcom"])
    assert _identify(administrators, listed) == "auditors reader"
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aud": "other"}, "not for 'confcom'"),
        ({"aud": None}, "not for 'confcom'"),
        ({"aud": {"confcom": 1}}, "not for 'confcom'"),
        ({"iss": "https://elsewhere.example"}, "of the issuer 'https://elsewhere.example', not"),
        ({"exp": 1}, "expired"),
        ({"exp": "never"}, "no number"),
        ({"nbf": 4102444800}, "not valid yet"),
        ({"sub": "mallory"}, "'mallory' of https"),
        ({"sub": "bob", "groups": ["audit"]}, "no administrator here"),
        ({"sub": ["x"]}, "no administrator here"),
    ],
)
def test_other_tokens_of_the_issuer_are_refused(
    tmp_path: Path, issuer: Issuer, changes: dict[str, Any], message: str
) -> None:
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    with pytest.raises(NotAnAdministrator, match=message) as refused:
        _identify(administrators, issuer.token(NOW, **changes))
    assert refused.value.guessed


def test_no_token_makes_itself_good(tmp_path: Path, issuer: Issuer) -> None:
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    claims = {"iss": issuer.url, "aud": "confcom", "sub": "alice", "exp": int(NOW.timestamp()) + 60}
    stranger = _signing_key(tmp_path / "two")
    own = stranger.jwk()
    forged = [
        unsecured(claims, {"typ": "JWT"}),
        stranger.sign(claims, {"jwk": own}),
        stranger.sign(claims, {"jku": "https://127.0.0.1:1/keys", "kid": "x"}),
        stranger.sign(claims, {"kid": issuer.signing.key_id}),
        jws.serialize_compact({"alg": "HS256", "kid": issuer.signing.key_id}, json.dumps(claims), _symmetric()),
        "a.b.c",
        "..",
        "x" * 100_000 + "..",
    ]
    for token in forged:
        with pytest.raises(NotAnAdministrator):
            _identify(administrators, token)
    # Unknown key ids do not make us ask the issuer again and again.
    assert len(issuer.asked) <= 4


def _symmetric() -> Any:
    return OctKey.import_key("secret" * 8)


def test_the_issuer_may_change_its_keys(tmp_path: Path, issuer: Issuer) -> None:
    clock = Clock(NOW)
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=clock)
    old = issuer.token(NOW)
    assert _identify(administrators, old) == "Alice contributor"
    issuer.signing = _signing_key(tmp_path / "next")
    issuer.keys = {"keys": [issuer.signing.jwk()]}
    clock.now += ASK_AGAIN
    assert _identify(administrators, issuer.token(clock.now)) == "Alice contributor"
    with pytest.raises(NotAnAdministrator, match="no pinned key"):
        _identify(administrators, old)


def test_an_issuer_out_of_reach_is_served_from_memory_for_an_hour(tmp_path: Path, issuer: Issuer) -> None:
    clock = Clock(NOW)
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=clock)
    assert _identify(administrators, issuer.token(NOW, exp=4102444800)) == "Alice contributor"
    issuer.close()
    clock.now += timedelta(minutes=45)
    assert _identify(administrators, issuer.token(clock.now)) == "Alice contributor"
    clock.now += timedelta(minutes=30)
    with pytest.raises(NotAnAdministrator, match="could not be fetched"):
        _identify(administrators, issuer.token(clock.now))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"issuer": "https://other.example", "jwks_uri": "https://127.0.0.1/k"}, "another issuer"),
        ({"jwks_uri": "https://127.0.0.1/k"}, "no discovery document"),
        ([], "no discovery document"),
        ("HTTP", "not at an https URL"),
    ],
)
def test_a_discovery_document_that_is_not_the_issuers(
    tmp_path: Path, issuer: Issuer, document: Any, message: str
) -> None:
    issuer.document = {"issuer": issuer.url, "jwks_uri": "http://127.0.0.1/k"} if document == "HTTP" else document
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    with pytest.raises(NotAnAdministrator, match=message):
        _identify(administrators, issuer.token(NOW))


def test_a_pinned_key_set_needs_no_network(tmp_path: Path, issuer: Issuer) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(issuer.keys))
    issuer.close()
    administrators = Administrators(_with_oidc(tmp_path, issuer, ', keys = "jwks.json"'), None, clock=Clock(NOW))
    assert _identify(administrators, issuer.token(NOW)) == "Alice contributor"
    assert issuer.asked == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("administrators = [", "not TOML"),
        ("", "administrators"),
        ('administrators = [{ name = "a" }]', "'a' has neither token_hash"),
        ('administrators = [{ name = "a", token_hash = "secret" }]', "token_hash"),
        ('administrators = [{ name = "a", claims = { sub = "a" } }]', r"\[oidc\] is missing"),
        ('administrators = [{ name = "a", certificate_name = "a" }]', "client_ca is missing"),
        ('administrators = [{ name = "a", role = "owner" }]', r"\[0\].role: .*; known are contributor, reader"),
        ('administrators = [{ name = "a", role = "contributer" }]', "reader; did you mean 'contributor'?"),
        ('administrators = [{ name = "a", rol = "reader" }]', r"administrators\[0\]: .*; did you mean 'role'?"),
        ('client_ca = "c"\nadministrators = [{ name = "a", certificate_name = "" }]', "certificate_name"),
        ('oidc = { issuer = "http://a.example", audience = "a" }\nadministrators = []', "issuer"),
        ('oidc = { issuer = "https://a.example", audience = "a", keys = "none" }\nadministrators = []', "none"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Administrators(_file(tmp_path, text), None, clock=Clock(NOW))
    assert "administrators.toml" in refused.value.message or "none" in refused.value.message


def test_a_changed_file_is_used_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = _file(tmp_path, f'administrators = [{{ name = "one", token_hash = "{HASH}" }}]')
    administrators = Administrators(file, None, clock=Clock(NOW))
    file.write_text("administrators = [")
    administrators.look()
    assert "not TOML" in administrators.problem
    assert _identify(administrators, TOKEN) == "one reader"
    file.write_text("administrators = []\n# none any more\n")
    administrators.look()
    assert administrators.problem == ""
    with pytest.raises(NotAnAdministrator, match="no administrator is configured"):
        _identify(administrators, TOKEN)


def test_a_broken_version_that_is_taken_back_leaves_no_problem(tmp_path: Path) -> None:
    file = _file(tmp_path, f'administrators = [{{ name = "one", token_hash = "{HASH}" }}]')
    administrators = Administrators(file, None, clock=Clock(NOW))
    kept = file.rename(tmp_path / "kept.toml")
    administrators.look()
    assert "No such file" in administrators.problem
    kept.rename(file)
    administrators.look()
    assert administrators.problem == ""


def test_a_changed_key_set_is_used_and_a_broken_one_is_not(tmp_path: Path, issuer: Issuer) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps(issuer.keys))
    administrators = Administrators(_with_oidc(tmp_path, issuer, ', keys = "jwks.json"'), None, clock=Clock(NOW))
    administrators.look()
    old = issuer.token(NOW)
    assert _identify(administrators, old) == "Alice contributor"
    jwks.write_text("{}")
    administrators.look()
    assert "jwks.json: JWKS" in administrators.problem
    assert _identify(administrators, old) == "Alice contributor"
    issuer.signing = _signing_key(tmp_path / "next")
    jwks.write_text(json.dumps({"keys": [issuer.signing.jwk()]}))
    administrators.look()
    assert administrators.problem == ""
    assert _identify(administrators, issuer.token(NOW)) == "Alice contributor"
    with pytest.raises(NotAnAdministrator, match="no pinned key"):
        _identify(administrators, old)


def test_keys_that_arrive_after_the_file_changed_are_not_the_new_issuers(tmp_path: Path, issuer: Issuer) -> None:
    """Otherwise an issuer that an administrator takes out could sign for the one that takes its place."""
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    old = issuer.token(NOW)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [_signing_key(tmp_path / "next").jwk()]}))
    issuer.go_on.clear()

    async def change_in_between() -> None:
        asking = asyncio.create_task(administrators.by_token(f"Bearer {old}"))
        while not issuer.asked:
            await asyncio.sleep(0.01)
        _with_oidc(tmp_path, issuer, ', keys = "jwks.json"')
        administrators.look()
        issuer.go_on.set()
        assert (await asking).name == "Alice"
        with pytest.raises(NotAnAdministrator, match="no pinned key"):
            await administrators.by_token(f"Bearer {old}")

    asyncio.run(change_in_between())


@pytest.mark.parametrize(("later", "stranger"), [(ASK_AGAIN, True), (KEYS_FOR * 0.9, False)])
def test_a_slow_issuer_does_not_hold_up_those_whose_key_is_known(
    tmp_path: Path, issuer: Issuer, later: timedelta, *, stranger: bool
) -> None:
    """A token with a key that nobody has starts a fetch, and so does one that comes when the known keys are old."""
    clock = Clock(NOW)
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=clock)
    unknown = _signing_key(tmp_path / "unknown").sign({"exp": 1}, {})

    async def ask_meanwhile() -> None:
        assert (await administrators.by_token(f"Bearer {issuer.token(NOW)}")).name == "Alice"
        issuer.go_on.clear()
        clock.now += later
        own = issuer.token(clock.now)
        asking = asyncio.create_task(administrators.by_token(f"Bearer {unknown if stranger else own}"))
        try:
            async with asyncio.timeout(60):
                while len(issuer.asked) == 2:
                    await asyncio.sleep(0.01)
                assert (await administrators.by_token(f"Bearer {own}")).name == "Alice"
                assert asking.done() is not stranger
        finally:
            issuer.go_on.set()
        with pytest.raises(NotAnAdministrator) if stranger else nullcontext():
            await asking

    asyncio.run(ask_meanwhile())


def test_an_issuer_that_answers_by_drips_is_given_up(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.administrators.FETCH_TIMEOUT", 1.0)
    issuer.piece, issuer.pause = 1, 0.2
    administrators = Administrators(_with_oidc(tmp_path, issuer), None, clock=Clock(NOW))
    with pytest.raises(IssuerUnavailable, match="did not answer within 1 seconds"):
        _identify(administrators, issuer.token(NOW))


def test_an_issuer_out_of_reach_makes_no_guesses_of_its_tokens(tmp_path: Path, issuer: Issuer) -> None:
    file = _with_oidc(tmp_path, issuer)
    with running_attestation(tmp_path, make_world(), administrators=str(file)) as service:
        issuer.close()
        for _ in range(7):
            refused = service.ask(POLICY, Authorization=f"Bearer {issuer.token(NOW)}")
            assert (refused.status, refused.error["code"]) == (503, "IssuerUnavailable")
            assert refused.headers["retry-after"] == "30"
        assert service.administer("/policies/SgxEnclave").status == 200


def _client(folder: Path, authority: Authority | None, name: str, at: datetime) -> tuple[Path, str]:
    """A file with a client's key and certificate, of the authority or of itself; and the SHA-256 of its DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    if authority is None:
        signer, issuer = key, subject
    else:
        signer = load_pem_private_key(authority.key, password=None)  # type: ignore[assignment]
        issuer = x509.load_pem_x509_certificate(authority.certificate).subject
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(minutes=5))
        .not_valid_after(at + timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://x/{name}")]), False)
        .sign(signer, SHA256())
    )
    path = folder / f"{name}.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    return path, certificate.fingerprint(SHA256()).hex()


def _asking(ca: Path, client: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if client is not None:
        context.load_cert_chain(client)
    return context


def test_client_certificates_of_the_named_authority(tmp_path: Path) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    servers, clients = (Authority.make(name, now=now, lifetime=DAY) for name in ("servers", "clients"))
    ca = tmp_path / "servers.pem"
    ca.write_bytes(servers.certificate)
    (tmp_path / "clients.pem").write_bytes(clients.certificate)
    certificate, key = _pair(tmp_path, servers, "server", now)
    (pinned, digest), (named, _), (unknown, _) = (
        _client(tmp_path, clients, name, now) for name in ("pinned", "named", "unknown")
    )
    stranger, _ = _client(tmp_path, None, "stranger", now)
    file = _file(
        tmp_path,
        f"""
        client_ca = "clients.pem"
        [[administrators]]
        name = "by digest"
        role = "contributor"
        certificate = "{digest}"
        [[administrators]]
        name = "by name"
        certificate_name = "spiffe://x/named"
        """,
    )
    tls = {"insecure_http": False, "tls_certificate": str(certificate), "tls_key": str(key)}
    port = free_port()
    with running_attestation(
        tmp_path, make_world(), administrators=str(file), listen=f"127.0.0.1:{port}", **tls
    ) as service:

        def put(client: Path | None) -> int:
            service.tls = _asking(ca, client)
            return service.ask(POLICY, PERMIT, method="PUT").status

        assert put(pinned) == 200
        assert put(named) == 403
        assert put(unknown) == put(None) == 401
        # A token still does where the certificate is no administrator's, and everybody else is served.
        service.tls = _asking(ca, unknown)
        assert service.administer("/policies/SgxEnclave").status == 200
        assert service.ask("/certs").status == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            put(stranger)
        assert put(pinned) == 200
        reset, empty = f"/policies/SgxEnclave:reset?{API}", "eyJhbGciOiJub25lIn0.."
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert service.ask(reset, empty, Sec_Fetch_Site=site).status == status
        # Browsers of before 2023.
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            (f"https://{service.url.split('/')[2]}", 200),
        ):
            assert service.ask(reset, empty, Origin=origin).status == status
        # Guesses from the same address close it to tokens, and a certificate is no guess.
        service.tls = _asking(ca, None)
        assert [service.ask(POLICY, Authorization="Bearer wrong").status for _ in range(6)] == [401] * 5 + [429]
        assert service.administer("/policies/SgxEnclave").status == 429
        assert put(pinned) == 200


@pytest.mark.parametrize("end", ["certificate", "authority"])
def test_the_rights_of_a_connection_end_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    servers, clients, others = (Authority.make(name, now=now, lifetime=DAY) for name in ("servers", "clients", "new"))
    ca, authority = tmp_path / "servers.pem", tmp_path / "clients.pem"
    ca.write_bytes(servers.certificate)
    authority.write_bytes(clients.certificate)
    certificate, key = _pair(tmp_path, servers, "server", now)
    client, digest = _client(tmp_path, clients, "alice", now)
    successor, _ = _client(tmp_path, others, "successor", now)
    administrator = f'[[administrators]]\nname = "alice"\nrole = "contributor"\ncertificate = "{digest}"'
    file = _file(tmp_path, f'client_ca = "clients.pem"\n{administrator}\n')
    tls = {"insecure_http": False, "tls_certificate": str(certificate), "tls_key": str(key)}
    with running_attestation(tmp_path, make_world(), administrators=str(file), **tls) as service:
        host, _, prefix = service.url.partition("://")[2].partition("/")
        kept, nobodys = (
            http.client.HTTPSConnection(host, timeout=120, context=_asking(ca, shown)) for shown in (client, None)
        )

        def ask(connection: http.client.HTTPConnection) -> tuple[int, str, str | None]:
            connection.request("GET", f"/{prefix}{POLICY}")
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.getheader("connection")

        # A renewed certificate of the server is no reason to end connections.
        for _ in range(2):
            assert [ask(kept)[0], ask(nobodys)[0]] == [200, 401]
            certificate.touch()
            service.pass_time(WATCH_INTERVAL)
        service.tls = _asking(ca, None if end == "certificate" else successor)
        if end == "certificate":
            later = time.time() + 2 * DAY.total_seconds()
            monkeypatch.setattr("confcom.services.runtime.tls.time", SimpleNamespace(time=lambda: later))
        else:
            authority.write_bytes(others.certificate)
            service.pass_time(LOOK_AT_FILES)
            service.wait_until(lambda: _reaches(service))
        status, reason, connection = ask(kept)
        assert (status, connection) == (401, "close")
        assert "a client's certificate as in this connection is not accepted any more: connect again" in reason
        assert ask(nobodys)[0] == 401
        assert nobodys.sock is not None  # it showed no certificate, and goes on
        kept.close()
        nobodys.close()
        # What is no authority leaves the former one in force.
        authority.write_bytes(b"")
        service.pass_time(LOOK_AT_FILES)
        assert _reaches(service)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be used"), (b" " * (MAX_PEM_FILE + 1), "has more than"), (None, "No such")]
)
def test_an_authority_of_clients_that_is_none_is_refused_by_name(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    certificate, key = _pair(tmp_path, Authority.make("servers", now=now, lifetime=DAY), "server", now)
    if content is not None:
        (tmp_path / "clients.pem").write_bytes(content)
    file = _file(tmp_path, f'client_ca = "clients.pem"\n[[administrators]]\nname = "a"\ntoken_hash = "{HASH}"\n')
    tls = {"insecure_http": False, "tls_certificate": str(certificate), "tls_key": str(key)}
    with (
        pytest.raises(ConfigError, match=f"clients.pem.*{message}"),
        running_attestation(tmp_path, make_world(), administrators=str(file), **tls),
    ):
        pass


def _reaches(service: RunningAttestation) -> bool:
    try:
        return service.ask("/certs").status == 200
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return False


def test_a_certificate_in_a_header_counts_for_nothing(tmp_path: Path) -> None:
    file = _file(tmp_path, f'administrators = [{{ name = "one", token_hash = "{HASH}" }}]')
    with running_attestation(tmp_path, make_world(), administrators=str(file), admin_token_hash=None) as service:
        assert service.ask(POLICY, X_Client_Cert="-----BEGIN CERTIFICATE-----").status == 401


def test_an_optional_file_counts_once_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "administrators.toml"
    administrators = Administrators(file, None, clock=Clock(NOW), optional=True)
    with pytest.raises(NotAnAdministrator, match="no administrator is configured"):
        _identify(administrators, TOKEN)
    _file(tmp_path, f'[[administrators]]\nname = "first"\ntoken_hash = "{HASH}"\n')
    administrators.look()
    assert _identify(administrators, TOKEN) == "first reader"
    file.unlink()
    administrators.look()
    with pytest.raises(NotAnAdministrator, match="no administrator is configured"):
        _identify(administrators, TOKEN)
    with pytest.raises(ConfigError):
        Administrators(file, None, clock=Clock(NOW))
    with pytest.raises(ConfigError, match="File name too long"):  # there may be one, as behind a folder of others
        Administrators(tmp_path / ("n" * 300), None, clock=Clock(NOW), optional=True)
