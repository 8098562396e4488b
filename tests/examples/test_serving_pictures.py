"""Images of requests: what is too large is not decoded, and nothing is fetched from private networks."""

import base64
import http.server
import io
import threading

import pytest
from PIL import Image

from examples.serving import pictures
from examples.serving.errors import RequestError
from examples.serving.pictures import image_of_bytes, image_of_url, is_public
from examples.serving.settings import Settings
from tests.examples.malformed_requests import bomb, text_bomb


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    ],
)
def test_an_address_that_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address(address):
    assert is_public(address)


@pytest.fixture
def site(monkeypatch):
    """A site of this machine that counts as public, and what it is asked."""
    asked = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.end_headers()
            else:
                self.send_response(200 if self.path != "/none" else 404)
                self.end_headers()
                self.wfile.write(png() if self.path == "/picture" else bytes(3_000_000))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


REMOTE = Settings(allow_remote_images=True, max_body=1_000_000)


def test_an_image_is_fetched_through_redirections(site):
    url, asked = site
    assert image_of_url(f"{url}/to/{url}/picture", "image", REMOTE).size == (8, 8)
    assert asked == [f"/to/{url}/picture", "/picture"]


def test_what_is_not_fetched(site):
    url, asked = site
    private = url.replace("127.0.0.1", "127.0.0.2")
    for target, said in (
        (f"{private}/picture", "127.0.0.2, which is not a public address"),
        (f"{url}/to/{private}/picture", "127.0.0.2, which is not a public address"),
        (f"{url}/to/file:///etc/passwd", "not allowed"),
        ("file:///etc/passwd", "unknown url type"),
        ("ftp://127.0.0.1/x", "unknown url type"),
        ("/etc/passwd", "unknown url type"),
        (f"{url}/none", "Not Found"),
        (f"{url}/large", "more than 1000000 bytes"),
        (f"{url}/to/" * 30 + f"{url}/picture", "redirect"),
        ("http://127.0.0.1:1/", "refused"),
        ("http:///x", "no host given"),
    ):
        with pytest.raises(RequestError, match=said):
            image_of_url(target, "image", REMOTE)
    with pytest.raises(RequestError, match="fetches no images"):
        image_of_url(f"{url}/picture", "image", Settings())
    assert "/picture" not in asked


def test_what_is_too_large_is_not_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "read_image", lambda *args: pytest.fail("It was decoded."))
    for side, said in ((5_000, "16777216 pixels, got 5000 x 5000"), (30_000, "16777216 pixels, and has many more")):
        with pytest.raises(RequestError, match=said):
            image_of_bytes(bomb(side), "image", Settings())
    with pytest.raises(RequestError, match="no image of PNG, JPEG, WEBP, GIF"):
        image_of_bytes(text_bomb(), "image", Settings())


def test_only_the_formats_of_the_web_are_read():
    for kind in ("BMP", "TIFF", "PPM", "ICO"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind)
        with pytest.raises(RequestError, match="no image of PNG"):
            image_of_bytes(file.getvalue(), "image", Settings())


def test_a_data_url_is_checked():
    coded = base64.b64encode(png()).decode()
    assert image_of_url(f"data:image/png;base64,{coded}", "image", Settings()).getpixel((0, 0)) == (255, 0, 0)
    for url, said in (
        (f"data:image/png;base64,{coded}!", "not valid base64"),
        (f"data:image/png,{coded}", "must be 'data:image/...;base64"),
        (f"data:text/plain;base64,{coded}", "must be 'data:image/...;base64"),
    ):
        with pytest.raises(RequestError, match=said):
            image_of_url(url, "image", Settings())
