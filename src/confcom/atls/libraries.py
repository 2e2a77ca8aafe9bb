"""What keeps HTTP libraries from following a redirect to http://, where no context is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from confcom.atls.client import ClientContext, NotAttested
from confcom.errors import ConfigError

if TYPE_CHECKING:
    from requests import Session


class _Done:
    """What both synchronous and asynchronous clients can ignore: it can be awaited, and need not be."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def https_only(request: Any, handler: Callable[[Any], Awaitable[Any]] | None = None) -> Any:  # noqa: ANN401 - of several libraries
    """Refuse requests that are not https, redirected ones too; `NotAttested`.

    For httpx and httpx2 an event hook: `event_hooks={"request": [https_only]}`; for aiohttp a middleware:
    `middlewares=(https_only,)`.
    """
    if request.url.scheme not in ("https", "wss"):
        refuse_plain(str(request.url))
    return _Done() if handler is None else handler(request)


def https_opener(context: ClientContext) -> OpenerDirector:
    """An opener of `urllib.request` that knows https alone, and no proxy of the environment."""
    opener = OpenerDirector()
    for handler in (
        HTTPSHandler(context=context),
        _NoHttp(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _NoHttp(HTTPHandler):
    def http_open(self, req: Request) -> NoReturn:
        refuse_plain(req.full_url)


def https_session(context: ClientContext) -> Session:
    """A session of `requests` that speaks https alone, and uses no proxy of the environment."""
    from requests import Session
    from requests.adapters import HTTPAdapter

    class Attested(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as in requests
            # urllib3 would compare names, of which an attested certificate has none that counts.
            super().init_poolmanager(*args, ssl_context=context, assert_hostname=False, **options)

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in requests
            return super().proxy_manager_for(*args, ssl_context=context, assert_hostname=False, **options)

        def cert_verify(self, *_: object) -> None:
            """Nothing to load: the context verifies."""

    class Refusing(HTTPAdapter):
        def send(self, request: Any, *_: object, **__: object) -> NoReturn:  # noqa: ANN401 - as in requests
            refuse_plain(request.url)

    session = Session()
    session.trust_env = False
    session.mount("https://", Attested())
    session.mount("http://", Refusing())
    return session


def refuse_plain(url: str) -> NoReturn:
    """Raise `NotAttested` for a URL that is not https; its path and query stay out of the message."""
    parts = urlsplit(url)
    raise NotAttested(
        ConfigError(
            f"{parts.scheme}://{parts.hostname} is not https: nothing there would be attested",
            advice="Ask for https. If a server redirected there, it must not.",
        )
    )
