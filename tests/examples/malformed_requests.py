"""Requests that are wrong in every way a client finds, at random: none of them may break the server."""

import base64
import io
import json
import random
import socket
import struct
import zlib

from PIL import Image


WRONG = (
    *(None, True, -1, 0, 1.5, 10**30, -(10**400), "", "x", "1", "\ud800", "\x00", "😀" * 50, "<|vision_start|>" * 20),
    *([], {}, [[]], [{}], {"a": {"b": []}}, ["x"] * 300, "a" * 100_000),
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
CHAT_FIELDS = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed", "stop"),
    *("stream", "stream_options", "tools", "logprobs", "response_format", "frequency_penalty", "user", "unknown"),
)
DRAWING = {"model": "tiny", "prompt": "x", "num_inference_steps": 2}
DRAWING_FIELDS = (
    *("model", "prompt", "n", "size", "response_format", "seed", "num_inference_steps", "guidance_scale"),
    *("negative_prompt", "user", "strength", "unknown"),
)
SIZES = ("1x1", "99999x99999", "64x", "x", "64x-64", "64 x 64", "0x0", "64x65", "64x64x64", "²x²", "٣٢x٣٢")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 30_000) -> bytes:
    """A PNG of many pixels in few bytes."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000), 9)
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + end


def text_bomb() -> bytes:
    """A PNG whose text is much larger than its file."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    data, text = file.getvalue(), b"k\0\0" + zlib.compress(bytes(20_000_000), 9)
    return data[:33] + png_chunk(b"zTXt", text) + data[33:]


def picture(rng: random.Random) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (rng.randrange(256), 0, 9)).save(
        file, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP"])
    )
    return file.getvalue()


def damaged_picture(rng: random.Random) -> bytes:
    data = bytearray(picture(rng))
    match rng.randrange(5):
        case 0:
            return bytes(data[: rng.randrange(len(data))])
        case 1:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(data)
        case 2:
            return bomb()
        case 3:
            return text_bomb()
        case _:
            return rng.randbytes(rng.randrange(200))


def image_url(rng: random.Random):
    coded = base64.b64encode(damaged_picture(rng)).decode()
    return rng.choice(
        [
            f"data:image/png;base64,{coded}",
            f"data:image/png;base64,{coded[:-1]}!",
            f"data:image/png,{coded}",
            f"data:text/html;base64,{coded}",
            coded,
            "data:",
            "file:///etc/passwd",
            "/etc/passwd",
            "http://127.0.0.1:1/x.png",
            "http://[::1]/x",
            "http://169.254.169.254/latest/meta-data",
            "gopher://x",
            *WRONG,
        ]
    )


def chat(rng: random.Random) -> dict:
    body = dict(CHAT)
    match rng.randrange(4):
        case 0:
            body[rng.choice(CHAT_FIELDS)] = rng.choice(WRONG)
        case 1:
            part = {"type": rng.choice(["image_url", "text", "video", *WRONG]), "image_url": {"url": image_url(rng)}}
            body["messages"] = [{"role": rng.choice(["user", "assistant", "system"]), "content": [part]}]
        case 2:
            message = {
                "role": "user",
                "content": "x",
                rng.choice(["role", "content", "name", "other"]): rng.choice(WRONG),
            }
            body["messages"] = [message] * rng.choice([1, 2, 50])
        case _:
            body.pop(rng.choice(list(body)))
            body["messages"] = rng.choice(
                [[{"role": "assistant", "content": "x"}], [{"role": "system", "content": "x"}]]
            )
    return body


def drawing(rng: random.Random) -> dict:
    body = {**DRAWING, rng.choice(DRAWING_FIELDS): rng.choice(WRONG)}
    if rng.random() < 0.3:
        body["size"] = rng.choice(SIZES)
    return body


def form(rng: random.Random) -> tuple[bytes, str]:
    """The body of an edit, and its content type."""
    boundary, lines = "b0undary", b""
    fields = {"prompt": "x", "num_inference_steps": "2", rng.choice(DRAWING_FIELDS): str(rng.choice(WRONG[:10]))}
    for key, value in fields.items():
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        lines += part.encode("utf-8", "replace")
    for _ in range(rng.choice([0, 1, 1, 2, 30])):
        name = rng.choice(["image", "image[]", "mask", "file", ""])
        lines += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
        lines += damaged_picture(rng) + b"\r\n"
    lines += f"--{boundary}--\r\n".encode()
    if rng.random() < 0.3:
        lines = lines[: rng.randrange(len(lines))]
    return lines, f"multipart/form-data; boundary={rng.choice([boundary, 'other', ''])}"


def request(rng: random.Random, max_body: int) -> tuple[bytes, bool]:
    """An HTTP request, of which something is wrong, and whether the connection is cut before its end."""
    kind, headers = rng.randrange(8), {"Content-Type": "application/json"}
    path = rng.choice(["/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"])
    method = "POST"
    if kind == 0:
        path, body = "/v1/images/edits", b""
        body, headers["Content-Type"] = form(rng)
    elif kind == 1:
        body = rng.choice(
            [b"", b"{", b"null", b"[]", b'"x"', b"NaN", b"\xff\xfe", b"[" * 20_000, b'{"a":' * 20_000, b"1" * 5_000]
        )
    elif kind == 2:
        body = b"x" * (max_body + 1)
    elif kind == 3:
        path = rng.choice(["/v1/nothing", "/", "/v1/models/%00", "/v1/models/" + "x" * 500, "/v1/../etc", "/v1/chat"])
        method, body = rng.choice(["GET", "POST", "DELETE", "PUT"]), b"{}"
    elif kind in (4, 5):
        body, path = json.dumps(chat(rng)).encode(), "/v1/chat/completions"
    else:
        body, path = json.dumps(drawing(rng)).encode(), "/v1/images/generations"
    if rng.random() < 0.05:
        headers["Content-Type"] = rng.choice(["text/plain", "application/xml", "multipart/form-data", ""])
    headers |= {"Host": "x", "Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    whole = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    is_cut = rng.random() < 0.1
    return whole[: rng.randrange(len(whole))] if is_cut else whole, is_cut


def send(address: tuple[str, int], data: bytes, is_cut: bool, seconds: float = 60) -> int | None:
    """The status of the answer, `None` if there is none."""
    answer = b""
    with socket.create_connection(address, seconds) as connection:
        try:
            connection.sendall(data)
            while not is_cut and (piece := connection.recv(65536)):
                answer += piece
        except OSError:  # the server does not read it to its end
            pass
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


__all__ = ["request", "send"]
