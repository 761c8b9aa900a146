"""SSRF rules for fetched images: hosts, resolved addresses, redirects, limits, and who receives our key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from backend.errors import ImageError, ImageMissingError
from backend.images.addresses import NEVER, is_loopback, refusal
from backend.images.fetching import Fetcher, HostRule, Target
from backend.labelstudio.client import LabelStudioClient
from tests.backend.web_server import Web

KEY = "k" * 40
DATA = b"some bytes"


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with Web({"/a.png": Response(DATA)}) as web:
        yield web


@pytest.fixture
def elsewhere() -> Iterator[Web]:
    with Web({"/a.png": Response(DATA)}) as web:
        yield web


@dataclass
class Names:
    """A resolver; each name has answers of its own, the last of which stays."""

    answers: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.answers.get(host)
        if answers is None:
            return [host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def make_fetcher(
    label_studio_url: str,
    *hosts: str,
    names: Names | None = None,
    max_bytes: int = 10**6,
    timeout_s: float = 5.0,
) -> Fetcher:
    rules = [HostRule.parse(host) for host in hosts]
    client = LabelStudioClient(label_studio_url, KEY)
    return Fetcher(client, rules, max_bytes, timeout_s, names or Names())


def place(web: Web) -> str:
    return urlsplit(web.url).netloc


def port(web: Web) -> int:
    return urlsplit(web.url).port or 0


def test_only_label_studio_is_asked_by_default(label_studio: Web, elsewhere: Web) -> None:
    fetcher = make_fetcher(label_studio.url)

    assert fetcher.fetch(f"{label_studio.url}/a.png") == DATA
    with pytest.raises(ImageMissingError, match=f"{place(elsewhere)}.*IMAGE_HOSTS"):
        fetcher.fetch(f"{elsewhere.url}/a.png")
    assert elsewhere.asked == []


def test_another_port_of_label_studios_host_is_another_host(label_studio: Web, elsewhere: Web) -> None:
    """Redis, say, which listens beside it."""
    assert urlsplit(label_studio.url).hostname == urlsplit(elsewhere.url).hostname
    with pytest.raises(ImageMissingError):
        make_fetcher(label_studio.url).fetch(f"{elsewhere.url}/a.png")


def test_a_named_host_is_asked_without_our_key(label_studio: Web, elsewhere: Web) -> None:
    assert make_fetcher(label_studio.url, place(elsewhere)).fetch(f"{elsewhere.url}/a.png") == DATA
    assert elsewhere.authorizations == [None]


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("cdn.example", "https://cdn.example/a", True),
        ("cdn.example", "http://CDN.example./a", True),
        ("cdn.example", "https://cdn.example:8443/a", False),
        ("cdn.example:8443", "https://cdn.example:8443/a", True),
        ("cdn.example:8443", "https://cdn.example/a", False),
        ("cdn.example", "https://x.cdn.example/a", False),
        ("cdn.example", "https://cdn.example.evil/a", False),
        ("cdn.example", "https://cdn.example@evil.example/a", False),
        ("cdn.example", "https://evil.example\\@cdn.example/a", False),
        ("cdn.example", "https://evil.example#@cdn.example/a", False),
        ("*.cdn.example", "https://x.cdn.example/a", True),
        ("*.cdn.example", "https://x.y.cdn.example/a", True),
        ("*.cdn.example", "https://cdn.example/a", False),
        ("*.cdn.example", "https://evilcdn.example/a", False),
        ("[::1]:80", "http://[::1]/a", True),
        ("*", "https://any.example/a", True),
        ("*", "https://any.example:6379/a", False),
    ],
)
def test_host_rules(rule: str, url: str, allowed: bool) -> None:
    assert HostRule.parse(rule).allows(Target.parse(url)) is allowed


@pytest.mark.parametrize(
    "rule", ["", "http://cdn.example", "cdn.example/path", "user@cdn.example", "a b", "*."]
)
def test_what_is_no_host_rule(rule: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        HostRule.parse(rule)


METADATA = [
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "::169.254.169.254",
]
PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.17.0.2",
    "192.168.0.9",
    "100.64.1.1",
    "::1",
    "fc00::1",
    "::ffff:10.0.0.1",
]


@pytest.mark.parametrize("address", [*METADATA, "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_some_addresses_are_never_asked(label_studio: Web, address: str) -> None:
    """Neither for a host that is named nor for any public one, nor for Label Studio itself."""
    names = Names({"pictures.example": [[address]]})
    for hosts, home in ((["pictures.example"], label_studio.url), (["*"], label_studio.url)):
        with pytest.raises(ImageMissingError, match="its address is"):
            make_fetcher(home, *hosts, names=names).fetch("http://pictures.example/latest/meta-data/")
    with pytest.raises(ImageMissingError, match="its address is"):
        make_fetcher("http://pictures.example", names=names).fetch("http://pictures.example/a.png")


@pytest.mark.parametrize("address", PRIVATE)
def test_any_public_host_is_none_at_a_private_address(label_studio: Web, address: str) -> None:
    names = Names({"evil.example": [[address]]})
    with pytest.raises(ImageMissingError, match="not a public one"):
        make_fetcher(label_studio.url, "*", names=names).fetch("http://evil.example/a.png")
    assert refusal(address, public_only=False) == "", "an operator may name such a host"


def test_public_addresses_are_public() -> None:
    assert [refusal(address, public_only=True) for address in ("93.184.215.14", "2606:4700::1111")] == [
        "",
        "",
    ]


def test_one_bad_address_among_good_ones_is_enough(label_studio: Web) -> None:
    names = Names({"evil.example": [["93.184.215.14", "169.254.169.254"]]})
    with pytest.raises(ImageMissingError, match="link-local"):
        make_fetcher(label_studio.url, "*", names=names).fetch("http://evil.example/a.png")


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost"])
def test_other_ways_to_write_an_address_are_resolved_before_they_are_checked(
    label_studio: Web, host: str
) -> None:
    client = LabelStudioClient(label_studio.url, KEY)
    fetcher = Fetcher(client, [HostRule.parse("*")], 100, 2.0)  # the system's own resolver
    with pytest.raises(ImageMissingError, match="not a public one"):
        fetcher.fetch(f"http://{host}/a.png")


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    label_studio: Web, elsewhere: Web
) -> None:
    """DNS rebinding: the name means another address at the second question, which is never put."""
    names = Names({"pictures.example": [["127.0.0.1"], ["169.254.169.254"]]})
    rule = f"pictures.example:{port(elsewhere)}"

    assert make_fetcher(label_studio.url, rule, names=names).fetch(f"http://{rule}/a.png") == DATA

    assert names.asked == ["pictures.example"]
    assert elsewhere.asked[0].headers["Host"] == rule


def test_the_next_address_is_tried_when_one_does_not_answer(label_studio: Web, elsewhere: Web) -> None:
    names = Names({"pictures.example": [["127.0.0.99", "127.0.0.1"]]})
    rule = f"pictures.example:{port(elsewhere)}"
    assert make_fetcher(label_studio.url, rule, names=names).fetch(f"http://{rule}/a.png") == DATA


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:6379/",
        "//127.0.0.1:6379/",
        "https://elsewhere.example/a.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
    ],
)
def test_each_redirect_is_checked_again(label_studio: Web, target: str) -> None:
    label_studio.answers["/moved.png"] = Response("", 302, {"Location": target})
    with pytest.raises(ImageMissingError):
        make_fetcher(label_studio.url).fetch(f"{label_studio.url}/moved.png")


def test_a_redirect_to_a_name_that_has_become_private_is_refused(label_studio: Web) -> None:
    names = Names({"evil.example": [["169.254.169.254"]]})
    label_studio.answers["/moved.png"] = redirect("http://evil.example/a.png")
    with pytest.raises(ImageMissingError, match="link-local"):
        make_fetcher(label_studio.url, "*", names=names).fetch(f"{label_studio.url}/moved.png")


def test_our_key_goes_to_label_studios_origin_only(label_studio: Web, elsewhere: Web) -> None:
    label_studio.answers["/data/away.png"] = redirect(f"{elsewhere.url}/back.png")
    elsewhere.answers["/back.png"] = redirect(f"{label_studio.url}/data/a.png")
    label_studio.answers["/data/a.png"] = Response(b"picture")

    make_fetcher(label_studio.url, place(elsewhere)).fetch(f"{label_studio.url}/data/away.png")

    assert label_studio.authorizations == [f"Token {KEY}"] * 2, "there and back again"
    assert elsewhere.authorizations == [None]


@pytest.mark.parametrize(
    "url",
    [
        "http://{evil}\\@{ours}/a.png",
        "http://{ours}@{evil}/a.png",
        "http://{evil}?@{ours}/a.png",
        "http://{evil}#@{ours}/a.png",
        "http://{evil}/http://{ours}/a.png",
    ],
)
def test_a_url_that_parsers_read_differently_leaks_no_key(
    label_studio: Web, elsewhere: Web, url: str
) -> None:
    fetcher = make_fetcher(label_studio.url, place(elsewhere))
    with suppress(ImageError):
        fetcher.fetch(url.format(evil=place(elsewhere), ours=place(label_studio)))
    assert set(elsewhere.authorizations) <= {None}
    assert label_studio.asked == []


def test_line_breaks_in_an_address_add_no_header(label_studio: Web) -> None:
    label_studio.answers["/a.png"] = Response(DATA)
    with pytest.raises(ImageError):
        make_fetcher(label_studio.url).fetch(f"{label_studio.url}/a.png HTTP/1.1\r\nX-Evil: 1\r\n\r\n")
    assert all("X-Evil" not in request.headers for request in label_studio.asked)


def test_proxies_netrc_and_cookies_are_not_used(
    label_studio: Web, elsewhere: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", elsewhere.url)
    monkeypatch.setenv("http_proxy", elsewhere.url)
    label_studio.answers["/a.png"] = Response(DATA, headers={"Set-Cookie": "a=b"})
    fetcher = make_fetcher(label_studio.url)

    fetcher.fetch(f"{label_studio.url}/a.png")
    fetcher.fetch(f"{label_studio.url}/a.png")

    assert elsewhere.asked == []
    assert all("Cookie" not in request.headers for request in label_studio.asked)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.b", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_network_that_is_never_asked_says_what_it_is() -> None:
    assert all(NEVER.values())
