"""Images of requests: their formats, how large they may be, and where they may come from."""

import base64
import binascii
import io
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.error import URLError

from PIL import Image

from modeling_rosetta.images_rosetta import read_image

from .errors import RequestError
from .settings import Settings


FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
FETCH_SECONDS = 20
TLS = ssl.create_default_context()


def image_of_url(url: str, param: str, settings: Settings) -> Image.Image:
    """The image in a `data:` URL, or behind another, if that is allowed."""
    if url[:5].lower() == "data:":
        found = DATA_URL.match(url)
        if not found:
            raise RequestError(f"'{param}' must be 'data:image/...;base64,...', got {url[:40]!r}.", param)
        try:
            return image_of_bytes(base64.b64decode(url[found.end() :], validate=True), param, settings)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"'{param}' is not valid base64: {error}", param) from None
    if not settings.allow_remote_images:
        raise RequestError(f"'{param}' must be a data URL: this server fetches no images, got {url[:80]!r}.", param)
    return image_of_bytes(fetch(url, param, settings.max_body), param, settings)


def image_of_bytes(data: bytes, param: str, settings: Settings) -> Image.Image:
    """In RGB. Its size is read before its pixels are."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RequestError(f"'{param}' may have {settings.max_pixels} pixels, and has many more.", param) from None
    except Exception:  # Pillow's formats raise almost anything on damaged files
        raise RequestError(f"'{param}' is no image of {', '.join(FORMATS)} that can be read.", param) from None
    if image.width * image.height > settings.max_pixels:
        raise RequestError(
            f"'{param}' may have {settings.max_pixels} pixels, got {image.width} x {image.height}.", param
        )
    try:
        return read_image(image, f"'{param}'")
    except ValueError as error:
        raise RequestError(str(error), param) from None


def fetch(url: str, param: str, max_bytes: int) -> bytes:
    """The bytes behind an `http:` or `https:` URL and its redirections, all of which must lead to public addresses."""
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        with _OPENER.open(urllib.request.Request(url, headers={"Accept": "image/*"}), timeout=FETCH_SECONDS) as answer:
            data = b""
            while piece := answer.read1(2**16):
                data += piece
                if len(data) > max_bytes or time.monotonic() > deadline:
                    raise RequestError(
                        f"'{param}' has more than {max_bytes} bytes or took longer than {FETCH_SECONDS} s.", param
                    )
            return data
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RequestError(f"'{param}' cannot be fetched from {url[:80]!r}: {reason}", param) from None


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also if it stands for one of IPv4."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        for inner in (found.ipv4_mapped, found.sixtofour, *(found.teredo or ())):
            if inner is not None:
                return is_public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _public_socket(host: str, port: int, timeout: float) -> socket.socket:
    """Connects to the very address that was checked, as the name may lead elsewhere a moment later."""
    addresses = [found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if private := [address for address in addresses if not is_public(address)]:
        raise OSError(f"{host} is at {private[0]}, which is not a public address")
    return socket.create_connection((addresses[0], port), timeout)


class _PublicHTTP(HTTPConnection):
    def connect(self):
        self.sock = _public_socket(self.host, self.port, self.timeout)


class _PublicHTTPS(HTTPSConnection):
    def connect(self):
        self.sock = TLS.wrap_socket(_public_socket(self.host, self.port, self.timeout), server_hostname=self.host)


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_PublicHTTP, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_PublicHTTPS, request)


# No proxies, files, FTP or `data:` URLs.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    _HTTPHandler,
    _HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
):
    _OPENER.add_handler(_handler())


__all__ = ["fetch", "image_of_bytes", "image_of_url", "is_public"]
