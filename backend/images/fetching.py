"""HTTP(S) downloads of untrusted URLs, with limits on hosts, addresses, size and time.

Task data is untrusted. URLs are therefore fetched only from Label Studio and from hosts listed by the
operator. A host name is resolved once, its addresses are checked, and the connection goes to a checked
address, which defeats DNS rebinding. Each redirect is checked likewise. Proxies, cookies and .netrc are not
used.

Label Studio's API key is sent to Label Studio's origin only, and there only for files. A GET of another path
can change something: `/api/projects/2/next` locks a task.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Timer
from urllib.parse import unquote, urljoin

import certifi
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from backend.errors import (
    ImageFetchError,
    ImageFormatError,
    ImageMissingError,
    LabelStudioUnauthorized,
)
from backend.images.addresses import refusal
from backend.labelstudio.client import LabelStudioClient

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 5.0
CHUNK_BYTES = 1 << 16
DEFAULT_PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
ANY_PUBLIC_HOST = "*"
MAX_URL_CHARACTERS = 2**15
"""Of an image's address. Servers refuse longer ones, and caches remember them."""
KEY_PATHS = re.compile(r"/(?:data/.+|(?:tasks|projects)/[0-9]{1,20}/(?:resolve|presign)/)")
"""URL paths of files in Label Studio and in its storages; the key is sent for these alone."""
_NO_FILE = re.compile(r"(?:^|[/;])\.\.?(?:$|[/;])|[\\\x00-\x1f\x7f]|//")
"""In a decoded path: a server may take it for another one."""
_DECODINGS = 3
LABEL_STUDIO_PATH = re.compile(r"/(data/(upload|local-files)|(tasks|projects)/\d+/[a-z-]+)/")
"""URL path of files that Label Studio serves."""

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port -> addresses, as text. Raises OSError."""


@dataclass(frozen=True)
class Target:
    """A URL, parsed once: the checked URL is the requested one."""

    scheme: str
    host: str
    """Host name or address; IPv6 without brackets."""
    port: int
    path: str
    """Including the query, percent-encoded."""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Parses a URL.

        Raises:
            ImageMissingError: not an http or https URL, or one too long.
        """
        if len(url) > MAX_URL_CHARACTERS:
            raise ImageMissingError(
                f"the task's image is at an address of more than {MAX_URL_CHARACTERS} characters"
            )
        try:
            parts = parse_url(url)
            scheme, host = parts.scheme or "", (parts.host or "").strip("[]").rstrip(".").lower()
            if scheme not in DEFAULT_PORTS or not host:
                raise LocationParseError("not an http or https URL with a host")
            return cls(scheme, host, parts.port or DEFAULT_PORTS[scheme], parts.request_uri)
        except (LocationParseError, ValueError) as error:
            raise ImageMissingError(
                "the task's image is at an unsupported address: only http and https are fetched"
            ) from error

    def follow(self, location: str) -> Target:
        """Target of a redirect from this URL.

        Raises:
            ImageMissingError: the target is not an http or https URL.
        """
        try:
            return Target.parse(urljoin(f"{self.scheme}://{self.place}{self.path}", location))
        except ValueError as error:
            raise ImageMissingError("the image's server redirects to an invalid address") from error

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def place(self) -> str:
        """The host, for messages: path and query may contain secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class HostRule:
    """One entry of IMAGE_HOSTS: `host`, `host:port`, `*.domain`, or `*` for every host at public addresses.

    Without a port, the scheme's default port applies.
    """

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Parses an entry.

        Raises:
            ValueError: invalid syntax.
        """
        wildcard, rest = ("*.", text[2:]) if text.startswith("*.") else ("", text)
        if rest == ANY_PUBLIC_HOST:
            return cls(ANY_PUBLIC_HOST)
        parts = parse_url(f"//{rest}")
        blank = any(character.isspace() for character in rest)  # accepted by older versions of urllib3
        if blank or not parts.host or parts.path or parts.auth or parts.query:
            raise ValueError(f"expected a host such as cdn.example.com, *.example.com or *, got {text!r}")
        return cls(wildcard + parts.host.strip("[]").lower(), parts.port)

    def allows(self, target: Target) -> bool:
        if target.port != (self.port or DEFAULT_PORTS[target.scheme]):
            return False
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:])
        return self.host in (ANY_PUBLIC_HOST, target.host)


def addresses_of(host: str, port: int) -> list[str]:
    """Resolves a host with the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Downloads images named by tasks. Thread-safe. The constructor opens nothing.

    Args:
        client: Label Studio, whose files need the API key; its origin is always allowed.
        hosts: Other allowed hosts.
        max_bytes: Larger files are not read to the end.
        timeout_s: For a whole download, including redirects.
        resolve: Replaces the system's resolver.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        hosts: Sequence[HostRule],
        max_bytes: int,
        timeout_s: float,
        resolve: Resolver = addresses_of,
    ) -> None:
        self._client = client
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve

    def is_label_studio(self, target: Target) -> bool:
        """Whether a URL is on Label Studio's origin."""
        return target.origin == Target.parse(self._client.url).origin

    def may_have_key(self, target: Target) -> bool:
        """Whether a URL is of a file that Label Studio serves, and may receive the API key."""
        home = Target.parse(self._client.url)
        path = target.path.partition("?")[0]
        prefix = home.path.rstrip("/")
        if target.origin != home.origin or not path.startswith(f"{prefix}/"):
            return False
        path = path.removeprefix(prefix)
        for _ in range(_DECODINGS):
            if _NO_FILE.search(path):
                return False
            path = unquote(path)
        return KEY_PATHS.fullmatch(target.path.partition("?")[0].removeprefix(prefix)) is not None

    def fetch(self, url: str) -> bytes:
        """Downloads a file.

        Raises:
            ImageMissingError: its address is forbidden.
            ImageFetchError: its server fails.
            ImageFormatError: it is too large.
            LabelStudioUnauthorized: Label Studio refuses the API key.
        """
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return self._follow(Target.parse(url), deadline_s)
        except LabelStudioUnauthorized:
            if not self._client.renew():
                raise
            return self._follow(Target.parse(url), deadline_s)

    def _follow(self, target: Target, deadline_s: float) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            public_only = self._check_host(target)
            answer = self._get(target, public_only, deadline_s)
            if isinstance(answer, bytes):
                return answer
            target = target.follow(answer.location)
        raise ImageFetchError(f"the image's server {target.place} redirects too often")

    def _check_host(self, target: Target) -> bool:
        """Whether its addresses must be public: not if the operator listed the host by name."""
        if self.is_label_studio(target):
            return False
        rules = [rule for rule in self._hosts if rule.allows(target)]
        if not rules:
            name = "IMAGE_HOSTS"
            if LABEL_STUDIO_PATH.search(target.path):
                name += ", or set LABEL_STUDIO_HOST if that is Label Studio itself"
            raise ImageMissingError(
                f"images are not fetched from {target.place}: the operator of the backend can add it to "
                f"{name}"
            )
        return all(rule.host == ANY_PUBLIC_HOST for rule in rules)

    def _checked_addresses(self, target: Target, public_only: bool) -> Sequence[str]:
        try:
            addresses = self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            raise ImageFetchError(f"the image's server {target.place} has no address") from error
        for address in addresses:
            if reason := refusal(address, public_only):
                raise ImageMissingError(
                    f"images are not fetched from {target.place}: its address is {reason}"
                )
        return addresses

    def _get(self, target: Target, public_only: bool, deadline_s: float) -> bytes | _Redirect:
        addresses = self._checked_addresses(target, public_only)
        signed = self.may_have_key(target)
        # Uncompressed alone: a small compressed body could expand beyond every limit.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "ssp-sam-assist"}
        if signed:
            headers["Authorization"] = self._client.authorization()
        try:
            with closing(_connect(addresses, target.port, deadline_s)) as raw:
                # The socket is connected to an address that was checked; a client that resolved the name
                # again could be given another one (DNS rebinding).
                connection = HTTPConnection(target.host, target.port)
                connection.sock = self._secured(raw, target, deadline_s)
                with _ended_at(deadline_s, connection.sock), closing(connection):
                    connection.request("GET", target.path, headers=headers)
                    answer = self._read(connection.getresponse(), target, signed)
            if time.monotonic() >= deadline_s:  # a truncated body looks like the end of the file
                raise TimeoutError
            return answer
        except (OSError, HTTPException) as error:
            if time.monotonic() >= deadline_s:
                raise ImageFetchError(f"the image did not arrive within {self._timeout_s:g} s") from error
            raise ImageFetchError(
                f"the image's server {target.place} does not respond ({type(error).__name__})"
            ) from error

    def _secured(self, raw: socket.socket, target: Target, deadline_s: float) -> socket.socket:
        if target.scheme == "http":
            return raw
        secured = self._tls.wrap_socket(raw, server_hostname=target.host, do_handshake_on_connect=False)
        with _ended_at(deadline_s, secured):
            secured.do_handshake()
        return secured

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where())

    def _read(self, response: HTTPResponse, target: Target, signed: bool) -> bytes | _Redirect:
        location = response.getheader("Location")
        if response.status in REDIRECTS and location:
            return _Redirect(location)
        if signed and response.status in (401, 403):
            raise LabelStudioUnauthorized(
                f"Label Studio refuses the backend's key ({response.status}): the operator of the backend "
                "must set LABEL_STUDIO_API_KEY"
            )
        if response.status != 200:
            raise ImageFetchError(f"the image's server {target.place} answers {response.status}")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise ImageFormatError(
                f"the image's server {target.place} sends a compressed response, which was not requested"
            )
        if (response.length or 0) > self._max_bytes:
            raise self._too_large()
        data = bytearray()
        # The length in the header is the sender's claim: what arrives is counted as well.
        while chunk := response.read1(CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large()
        if response.length:
            raise HTTPException("the file is truncated")
        return bytes(data)

    def _too_large(self) -> ImageFormatError:
        return ImageFormatError(f"the image file is larger than {self._max_bytes} bytes")


@dataclass(frozen=True)
class _Redirect:
    location: str


def _connect(addresses: Sequence[str], port: int, deadline_s: float) -> socket.socket:
    """Connects to the first address that responds."""
    last: OSError = OSError("no address")
    for address in addresses:
        left_s = max(deadline_s - time.monotonic(), 0.001)
        try:
            connected = socket.create_connection((address, port), timeout=min(CONNECT_TIMEOUT_S, left_s))
        except OSError as error:
            last = error
            continue
        connected.settimeout(left_s)
        return connected
    raise last


class _ended_at:
    """Closes a connection at a deadline, so that slow servers cannot hold threads."""

    def __init__(self, deadline_s: float, connection: socket.socket) -> None:
        self._connection = connection
        self._timer = Timer(max(deadline_s - time.monotonic(), 0.0), self._shut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()

    def _shut(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
