"""What every daemon's process needs around its `serve`: settings, logs, signals, tasks and threads."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import queue
import re
import select
import signal
import sys
import threading
import time
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import msgspec
import structlog
from structlog.tracebacks import ExceptionDictTransformer

from confcom.errors import ClusterError, ConfcomError, ConfigError, OutputError
from confcom.formats.arguments import explain_settings, without_bom
from confcom.input_file import read_bounded
from confcom.services.runtime.listener import FairQueue

MAX_SETTINGS = 64 * 1024
"""Bytes of a file of settings."""
MOST: dict[type, int] = {float: 36_525 * 86_400, int: 1 << 53}
"""The largest numbers in settings: 100 years of seconds, with which times still are times, and what a double holds."""
LOG_PATIENCE = 1.0
"""Seconds for which a line of the log waits for a reader that does not read."""
Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Config = TypeVar("_Config", bound=msgspec.Struct)


def load(
    kind: type[_Config],
    *,
    service: str,
    file: Path | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    option: Callable[[str], str] = str,
) -> tuple[_Config, Callable[[str], str]]:
    """The configuration of a service (defaults < file < environment < flags), and a function for where a field was set.

    `file` is TOML with the fields at top level. `environment` is searched for `CONFCOM_<SERVICE>_<FIELD>`. A flag that
    is None was not given; `option` gives the name of a field's flag. Unknown names and wrong values are a `ConfigError`
    that names them where they were written.
    """
    document = {} if file is None else read_toml(file)
    written = _convert(kind, document, f"{file}: ", str, strict=True)

    def variable(field: str) -> str:
        return f"CONFCOM_{service}_{field}".upper().replace("-", "_")

    fields = msgspec.structs.fields(kind)
    named = {field.name: _worded(field, environment[variable(field.name)])
             for field in fields if variable(field.name) in environment}  # fmt: skip
    named = _convert(kind, named, "", variable, strict=False)
    given = {name: value for name, value in flags.items() if value is not None}
    given = _convert(kind, given, "", option, strict=True)

    def place(field: str) -> str:
        if field in named and field not in given:
            return variable(field)
        if field in written and field not in given:
            return f"{file}: {field}"
        return option(field)

    return kind(**written | named | given), place


def render(config: msgspec.Struct) -> str:
    """The configuration as indented JSON, without passwords in URLs."""
    text = json.dumps(msgspec.to_builtins(config), indent=2)  # msgspec's refuses names of files that are no UTF-8
    return re.sub(r'("[a-z+]+://[^:@/"]*):[^/"]*@', r"\1:***@", text)


def _worded(field: msgspec.structs.FieldInfo, text: str) -> object:
    """A variable's text; of a list, its words, with commas between."""
    return [word for part in text.split(",") if (word := part.strip())] if isinstance(field.default, tuple) else text


def read_toml(file: Path, *, patience: float | None = None) -> dict[str, Any]:
    """A file of settings, at most `MAX_SETTINGS` bytes; `ConfigError` if it cannot be read."""
    try:
        content = read_bounded(file, MAX_SETTINGS, patience=patience)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    if len(content) > MAX_SETTINGS:
        raise ConfigError(f"{file} has more than {MAX_SETTINGS} bytes", advice="Name the file of settings.")
    try:
        return tomllib.loads(without_bom(content).decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _convert(
    kind: type[_Config], values: Mapping[str, Any], source: str, named: Callable[[str], str], *, strict: bool
) -> dict[str, Any]:
    # Each source is checked by itself, so that a mistake is reported where it was made.
    try:
        config = msgspec.convert(dict(values), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}{explain_settings(error, kind, named)}") from error
    found = {name: getattr(config, name) for name in values}
    for name, value in found.items():
        if (most := MOST.get(type(value))) is not None and value > most:
            raise ConfigError(f"{source}{named(name)}: Expected `{type(value).__name__}` <= {most}")
    return found


def configure_logging(*, verbose: bool = False, quiet: bool = False, pretty: bool | None = None) -> None:
    """Set up the process's log on stderr: lines of JSON, or columns on a terminal (or as `pretty` says).

    `verbose` adds debugging, `quiet` leaves warnings and errors. Tracebacks come without local variables, which hold
    requests with their tokens.
    """
    level = "debug" if verbose else "warning" if quiet else "info"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty if pretty is not None else sys.stderr.isatty():
        processors = [*shared, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        factory: Any = structlog.PrintLoggerFactory(cast("Any", Lossy(sys.stderr)))
    else:
        processors = [
            *shared,
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
        factory = structlog.BytesLoggerFactory(cast("Any", Lossy(sys.stderr.buffer)))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
    )


class Lossy:
    """A stream for what a daemon says. What a full disk or a pipe without a reader does not take is lost.

    The work goes on. A reader that has stopped is waited for once, `LOG_PATIENCE` seconds; what is lost until it reads
    again is counted.
    """

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - of text or bytes
        self._stream = stream
        self._lost = 0

    def write(self, data: Any) -> None:  # noqa: ANN401 - as above
        """Write, or lose it."""
        with suppress(OSError, OutputError):
            if not self._is_read():
                self._lost += 1
                return
            if self._lost:
                note = f'{{"event":"process.log","level":"warning","lost":{self._lost}}}\n'
                self._lost = 0
                self._stream.write(note.encode() if isinstance(data, bytes) else note)
            self._stream.write(data)

    def flush(self) -> None:
        """Write what is kept back, or lose it."""
        with suppress(OSError, OutputError):
            if not self._lost:
                self._stream.flush()

    def _is_read(self) -> bool:
        try:
            descriptor = self._stream.fileno()
        except OSError:  # in memory
            return True
        return bool(select.select((), (descriptor,), (), 0 if self._lost else LOG_PATIENCE)[1])


def _json(event: object, **_: object) -> bytes:
    try:
        return msgspec.json.encode(event, enc_hook=str)
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        return json.dumps(event, default=str).encode()


AT_ONCE = 5
"""Restarts without a pause; after that they are 1 s apart, 2 s, 4 s and so on."""
LONGEST_PAUSE = 30.0
FORGIVEN_AFTER = 60.0
"""Seconds of life after which earlier deaths of a process or failures of a task no longer count."""
SAME_REQUEST = 0.25
"""Seconds in which several signals are one request to stop: `timeout`, systemd and a parent send one each."""
_STOPS = (signal.SIGTERM, signal.SIGINT)
_SI_KERNEL = 0x80
"""`si_code` of a terminal's signal, which goes to every process in the foreground."""


def _requests_to_stop() -> frozenset[int]:
    """SIGTERM, SIGINT, and SIGHUP, unless that is ignored as under `nohup`."""
    return frozenset(_STOPS if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*_STOPS, signal.SIGHUP))


def stop_on_signals() -> asyncio.Event:
    """An event that a request to stop sets, in the running loop. Only a process's entry point calls this.

    A further SIGTERM or SIGINT, `SAME_REQUEST` later or more, ends the process at once, even while its event loop is
    busy. SIGHUP counts for nothing then.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            loop.call_later(SAME_REQUEST, end_at_next)

    def end_at_next() -> None:
        for number in _STOPS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _requests_to_stop():
        loop.add_signal_handler(number, asked)
    return stop


def restart_when_killed() -> int:
    """Continue in a child process that is started again whenever a signal has killed it; returns the restarts so far.

    The parent waits, passes signals on and reaps, and exits with the child's exit code when the child exits by itself
    or by a signal that was passed on. As a container's first process it avoids the kubelet's growing pauses, and
    modules imported before this call need not be imported again. Call it before there are threads or an event loop.
    """
    stops = _requests_to_stop()
    signals = stops | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    logger = structlog.get_logger()
    restarts = deaths = 0
    stopping = False
    while True:
        started = time.monotonic()
        ends, held = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(held)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            _stop_with_parent(ends)
            return restarts
        os.close(ends)
        while (status := _reap(child)) is None:
            found = signal.sigwaitinfo(signals)
            stopping = stopping or found.si_signo in stops
            if found.si_signo != signal.SIGCHLD and found.si_code != _SI_KERNEL:
                os.kill(child, found.si_signo)
        os.close(held)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0 or stopping:
            raise SystemExit(code if code >= 0 else 128 - code)
        deaths = 1 if time.monotonic() - started >= FORGIVEN_AFTER else deaths + 1
        pause = restart_pause(deaths)
        logger.warning("process.restart", reason=f"killed by {signal.Signals(-code).name}", restart_in=pause)
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            asked = signal.sigtimedwait(signals, left)
            if asked is not None and asked.si_signo in stops:
                raise SystemExit(0)
        restarts += 1


def restart_pause(deaths: int) -> float:
    """Seconds before the next start, after so many deaths or failures in a row."""
    return 0.0 if deaths <= AT_ONCE else min(2.0 ** min(deaths - AT_ONCE - 1, 5), LONGEST_PAUSE)


def _reap(child: int) -> int | None:
    """Reap every process that has ended; the status of the child, if it is among them."""
    found = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = ended[1]
    except ChildProcessError:
        pass
    return found


def _stop_with_parent(ends: int) -> None:
    # The kernel sends the signal when the pipe is closed: when the parent exits.
    fcntl.fcntl(ends, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(ends, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(ends, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


async def run_until(stop: asyncio.Event, *actors: Coroutine[Any, Any, None]) -> None:
    """Run coroutines that do not end by themselves until `stop` is set; then cancel them and wait for their ends.

    The first that fails ends all, and its error is raised; `RuntimeError` for one that ended before without an error.
    """
    tasks = [asyncio.create_task(actor) for actor in actors]
    waits: list[asyncio.Task[Any]] = [*tasks, asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
                if not stop.is_set():
                    raise RuntimeError(f"{getattr(task.get_coro(), '__qualname__', 'a task')} ended by itself")
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def wait_for(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until the event is set, or for so many seconds; None: for as long as it takes. Whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def repeat(
    call: Callable[[], Coroutine[Any, Any, None]],
    failed: Callable[[ConfcomError], None],
    *,
    pause: float,
    longest: float,
    first: float = 1.0,
) -> None:
    """Call again and again until cancelled, `pause` seconds after each success.

    After a `ConfcomError`, which `failed` gets, the pause is `first`, and doubles up to `longest` until a call succeeds
    or lasts longer than that. What `failed` raises is raised.
    """
    failures = 0
    while True:
        begun = time.monotonic()
        try:
            await call()
            failures = 0
            await asyncio.sleep(pause)
        except ConfcomError as error:
            failed(error)
            failures = 0 if time.monotonic() - begun > longest else failures
            await asyncio.sleep(min(first * 2.0 ** min(failures, 16), longest))
            failures += 1


async def keep_running(name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function until it returns; a failure is logged at once, and it runs again (`restart_pause`)."""
    failures = 0
    while True:
        begun = time.monotonic()
        try:
            await run()
        except Exception:  # noqa: BLE001 - any failure: the daemon goes on, and so has its task to
            failures = 1 if time.monotonic() - begun >= FORGIVEN_AFTER else failures + 1
            pause = restart_pause(failures)
            structlog.get_logger().exception("process.task", task=name, restart_in=pause)
            await asyncio.sleep(pause)
        else:
            return


@asynccontextmanager
async def background(name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Keep a coroutine function running beside the block (`keep_running`)."""
    task = asyncio.create_task(keep_running(name, run), name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


WATCH_LIFE = 600.0
"""Seconds after which an object of the Kubernetes API is read and watched again."""
RETRY_MAX = 30.0
"""Most seconds between two attempts to watch it after failures."""

State = TypeVar("State")


class Reconciler(Generic[State]):
    """Keeps an object of the Kubernetes API as it should be: hands every state that `watch` shows to `repair`.

    `repair` says whether it wrote something. `settle`: least seconds between two writes, the backoff between
    conflicting writers, and before the second attempt to watch. `failed` gets the reason of each failed attempt.
    """

    def __init__(
        self,
        watch: Callable[[], AsyncGenerator[State, None]],
        repair: Callable[[State], Awaitable[bool]],
        failed: Callable[[str], None],
        *,
        settle: float,
    ) -> None:
        self.unhealthy_reason = "the API has not shown it yet"
        """Why the object may differ from what it should be, as a clause; empty when it does not."""
        self._show = watch
        self._repair = repair
        self._failed = failed
        self._settle = settle
        self._state: State | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Have the last state repaired again: what it should be has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Watch and repair until cancelled; failed attempts are repeated."""
        await repeat(self._follow, self._lost, first=self._settle, pause=0.0, longest=RETRY_MAX)

    def _lost(self, error: ConfcomError) -> None:
        self.unhealthy_reason = f"{error.code}: {error.message}"
        self._failed(self.unhealthy_reason)

    async def _follow(self) -> None:
        self._state = None
        try:
            async with asyncio.timeout(WATCH_LIFE), asyncio.TaskGroup() as group:
                repairing = group.create_task(self._repair_all(), name="repair")
                async with aclosing(self._show()) as states:
                    async for state in states:
                        self._state = state
                        self._wake.set()
                repairing.cancel()
        except TimeoutError:
            return
        except BaseExceptionGroup as group_error:
            # One cause is enough: the other task was only cancelled because of it.
            raise group_error.exceptions[0] from None
        if self._state is None:
            raise ClusterError("the object is not in the API")

    async def _repair_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._state is not None:
                wrote = await self._repair(self._state)
                self.unhealthy_reason = ""
                if wrote:
                    await asyncio.sleep(self._settle)


T = TypeVar("T")


class Overloaded(Exception):
    """The queue of waiting calls is full. Never leaves the service: the client gets BUSY or 503."""


class WorkerThreads:
    """Blocking calls in `threads` threads, awaited from the event loop; at most `max_waiting` calls wait for a thread.

    Their owners take turns, and one that fills the queue makes room for the others (`FairQueue`).

    The threads are daemons, unlike those of `ThreadPoolExecutor`: a call that hangs in the network does not keep the
    process from exiting.
    """

    def __init__(self, name: str, *, threads: int, max_waiting: int) -> None:
        self._calls: FairQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]] = FairQueue()
        self._lock = threading.Lock()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each call in the queue; False ends a thread."""
        self._room = threads + max_waiting
        self._under_way = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def under_way(self) -> int:
        return self._under_way

    async def run(self, call: Callable[[], T], owner: str = "") -> T:
        """The result of `call`, or its exception; `Overloaded` when too many calls wait.

        A call is dropped when its caller was cancelled before its turn.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        with self._lock:
            limit = self._room - self._under_way + len(self._calls)
            displaced = self._calls.push(owner, (call, loop, result), limit=limit)
        if displaced is None:
            self._under_way += 1
            self._turns.put(item=True)
        elif not displaced[2].done():
            displaced[2].set_exception(Overloaded())
        return await result

    def close(self, timeout: float = 5.0) -> None:
        """Have the threads exit after their present calls; waits up to `timeout` seconds for each."""
        for _ in self._threads:
            self._turns.put(item=False)
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while self._turns.get():
            with self._lock:
                call = self._calls.pop()
            self._perform(*call)

    def _perform(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop, result: asyncio.Future[T]) -> None:
        value: Any = None
        failure: BaseException | None = None
        try:
            if not result.done():
                value = call()
        except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
            failure = error

        def settle() -> None:
            self._under_way -= 1
            if result.done():
                return
            if failure is None:
                result.set_result(value)
            else:
                result.set_exception(failure)

        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop has ended, and with it the awaiting task
