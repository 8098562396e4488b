"""What requests may hold, as OpenAI names it."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


SEED = Field(default=None, ge=0, lt=2**63)
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def _size(value):
    if not isinstance(value, str) or not (value == "auto" or SIZE.fullmatch(value)):
        raise ValueError("must be 'auto', or width x height in pixels such as '256x256'")
    return value


def _neutral(*allowed):
    """For what can only be left as it is."""

    def check(value):
        if not any(value == one and type(value) is type(one) for one in (None, *allowed)):
            raise ValueError(
                f"is not supported by this server; it may be left out{', or be ' * bool(allowed)}"
                + " or ".join(repr(one) for one in allowed)
            )
        return value

    return BeforeValidator(check)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Text(Body):
    type: Literal["text"]
    text: str


class ImageURL(Body):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Image(Body):
    type: Literal["image_url"]
    image_url: ImageURL


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[Text | Image, Field(discriminator="type")]]
    name: str | None = None


class StreamOptions(Body):
    include_usage: bool = False


class ChatCompletion(Body):
    """https://platform.openai.com/docs/api-reference/chat/create, but for tools, audio and log-probabilities."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = SEED
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Annotated[float | int | None, _neutral(0, 0.0)] = None
    presence_penalty: Annotated[float | int | None, _neutral(0, 0.0)] = None
    logprobs: Annotated[bool | None, _neutral(False)] = None
    tools: Annotated[list | None, _neutral([])] = None
    response_format: Annotated[dict | None, _neutral({"type": "text"})] = None


class ImageGeneration(Body):
    """https://platform.openai.com/docs/api-reference/images/create; what comes after `user` are diffusers' names."""

    model: str | None = None
    prompt: str
    n: int = Field(default=1, ge=1)
    size: Annotated[str, BeforeValidator(_size)] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    user: str | None = None
    seed: int | None = SEED
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=5.0, ge=0, le=100)
    negative_prompt: str | None = None

    def height_and_width(self) -> tuple[int | None, int | None]:
        found = SIZE.fullmatch(self.size)
        return (int(found[2]), int(found[1])) if found else (None, None)


class ImageEdit(ImageGeneration):
    """https://platform.openai.com/docs/api-reference/images/createEdit, a form, whose images come beside it."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    strength: float | None = Field(default=None, gt=0, le=1)
    image_guidance_scale: float | None = Field(default=None, ge=0, le=100)


__all__ = ["ChatCompletion", "ImageEdit", "ImageGeneration", "Message"]
