"""A chat completion request in OpenAI's form, checked whole before anything is computed.

    JSON -> ChatRequest -> messages with encoded images, generation settings

What the runtime cannot do is refused by name; no field is ignored silently. Images come as data URLs: the
server never fetches anything.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.prompt import Message, Part
from edge.serve.settings import ServeSettings
from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.images import open_image

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
# What decoders are tried; each more is more code that reads a stranger's bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class Refused(GenrecalError):
    """A request that gets an error for an answer.

    Args:
        status: of HTTP.
        kind: OpenAI's `type` of the error.
        param: the field that is wrong.
        retry_s: seconds after which it is worth another try.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(what)
        self.status, self.kind, self.param, self.retry_s = status, kind, param, retry_s


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """`detail` is a hint; an image's size decides here."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: None = None


class StreamOptions(_Strict):
    include_usage: bool = False


class ResponseFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Strict):
    """OpenAI's fields that this runtime follows, and transformers' names for what OpenAI has none for."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    # Accepted with the value that changes nothing.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    # As in generation_config.json.
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    min_new_tokens: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """An image as it came; decoded when its turn is there, so that waiting requests hold no pixels."""

    data: bytes
    name: str

    def open(self) -> Image.Image:
        try:
            return open_image(self.data, name=self.name)
        except DataError as error:
            raise Refused(str(error), param="messages") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A checked request."""

    turns: tuple[tuple[str, tuple[str | EncodedImage, ...]], ...]
    overrides: dict[str, Any]
    stream: bool
    include_usage: bool

    def messages(self) -> list[Message]:
        """The turns with their images decoded."""

        def opened(part: str | EncodedImage) -> Part:
            return part if isinstance(part, str) else part.open()

        return [Message(role=role, parts=tuple(map(opened, parts))) for role, parts in self.turns]


def read_request(body: bytes, settings: ServeSettings, *, model: str) -> Conversation:
    """Check a request's JSON.

    Raises:
        Refused: what is wrong with it, and in which field.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise Refused(f"'{where}' is not supported by this server", param=where) from None
        raise Refused(
            f"{where}: {problem['msg']}" if where else problem["msg"], param=where or None
        ) from None
    if request.model != model:
        raise Refused(
            f"the model '{request.model}' is not served here; '{model}' is", status=404, param="model"
        )
    if request.messages[-1].role != "user":
        raise Refused("the last message must be the user's", param="messages")
    turns = tuple(_turn(number, message, settings) for number, message in enumerate(request.messages))
    if sum(isinstance(part, EncodedImage) for _, parts in turns for part in parts) > settings.max_images:
        raise Refused(f"more than {settings.max_images} images", param="messages")
    return Conversation(
        turns=turns,
        overrides=_overrides(request, settings),
        stream=request.stream,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _turn(
    number: int, message: ChatMessage, settings: ServeSettings
) -> tuple[str, tuple[str | EncodedImage, ...]]:
    where = f"messages.{number}.content"
    content = (
        message.content
        if isinstance(message.content, list)
        else [TextPart(type="text", text=message.content)]
    )
    if not content:
        raise Refused("is empty", param=where)
    parts = tuple(
        part.text if isinstance(part, TextPart) else _image(part.image_url.url, where, settings)
        for part in content
    )
    if message.role != "user" and not all(isinstance(part, str) for part in parts):
        raise Refused(f"only the user's messages hold images, not the {message.role}'s", param=where)
    return ("system" if message.role == "developer" else message.role), parts


def _image(url: str, where: str, settings: ServeSettings) -> EncodedImage:
    prefix = DATA_URL.match(url)
    if prefix is None:
        raise Refused(
            "images must be data URLs (data:image/png;base64,...); this server fetches nothing", param=where
        )
    try:
        data = base64.b64decode(url[prefix.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused("an image is not valid base64", param=where) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images over pillow's limit; ours follows
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Refused(f"an image is none of {', '.join(FORMATS)}", param=where) from None
    if width * height > settings.max_pixels:
        raise Refused(
            f"an image of {width}x{height} has more than {settings.max_pixels:,} pixels",
            status=413,
            param=where,
        )
    return EncodedImage(data=data, name=where)


def _overrides(request: ChatRequest, settings: ServeSettings) -> dict[str, Any]:
    """Generation settings in the place of the build's own."""
    length = request.max_completion_tokens or request.max_tokens
    if length is not None and length > settings.max_new_tokens:
        raise Refused(
            f"an answer may have {settings.max_new_tokens} tokens here, not {length}",
            param="max_completion_tokens",
        )
    stop: Sequence[str] = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if not all(stop):
        raise Refused("a stop string is empty", param="stop")
    given = {
        "max_new_tokens": length,
        "temperature": request.temperature or None,
        "do_sample": None if request.temperature is None else request.temperature > 0,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "no_repeat_ngram_size": request.no_repeat_ngram_size,
        "min_new_tokens": request.min_new_tokens,
        "stop_strings": tuple(stop) or None,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    # Without a seed, two requests that are alike draw differently.
    return {**overrides, "seed": abs(request.seed) if request.seed is not None else None}
