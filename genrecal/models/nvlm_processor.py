"""NVLM-D's processor: tiles as InternVL cuts them, and a tag in text before the tokens of each tile.

    <Image><tile_1>PAD..PAD<tile_2>PAD..PAD<tile_global_thumbnail>PAD..PAD</Image>

The tags are plain text for the tokenizer; the overview of the whole image comes last, and stands alone where
an image is one tile (NVLM, arXiv:2409.11402).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images
from transformers.models.internvl.processing_internvl import InternVLProcessorKwargs

OVERVIEW = "<tile_global_thumbnail>"


class NvlmProcessor(ProcessorMixin):
    """Tokenizer and tile cutter of NVLM-D."""

    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]  # type: ignore[misc]
    image_processor_class: Any = "AutoImageProcessor"
    tokenizer_class: Any = "AutoTokenizer"
    image_processor: Any
    tokenizer: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Join the two parts.

        Args:
            image_processor: a GotOcr2ImageProcessor.
            tokenizer: one that names its `context_image_token`.
            image_seq_length: tokens of a tile.
            chat_template: writes that token where an image stands.
            kwargs: what ProcessorMixin takes.
        """
        self.image_seq_length = image_seq_length
        self.image_token = tokenizer.context_image_token
        self.image_token_id = tokenizer.context_image_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def image_text(self, tiles: int) -> str:
        """What stands in a prompt for an image of `tiles` tiles, the overview counted."""
        tags = [*(f"<tile_{number}>" for number in range(1, tiles)), OVERVIEW]
        body = "".join(tag + self.image_token * self.image_seq_length for tag in tags)
        return f"<Image>{body}</Image>"

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Token ids, attention mask and, with images, pixel_values [tiles, 3, height, width].

        Args:
            images: one for each `image_token` of the texts, in their order, in one list or nested ones.
            text: one prompt or several.
            videos: none is taken.
            audio: none is taken.
            kwargs: options of the tokenizer and of the image processor.

        Raises:
            ValueError: no text, a video or audio, or other numbers of images than of image tokens.
        """
        if text is None or videos is not None or audio is not None:
            raise ValueError("NVLM-D reads text, with or without images")
        known: Any = InternVLProcessorKwargs
        options = self._merge_kwargs(known, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        vision, tiles = {}, []
        if images is not None:
            flat = make_flat_list_of_images(self.image_processor.fetch_images(images))
            cut = self.image_processor(images=flat, **options["images_kwargs"])
            tiles = [int(count) for count in cut["num_patches"]]
            vision = {"pixel_values": cut["pixel_values"]}
        needed = sum(prompt.count(self.image_token) for prompt in texts)
        if needed != len(tiles):
            raise ValueError(f"{needed} image tokens in the prompts, {len(tiles)} images")
        following = iter(tiles)
        texts = [self._fill(prompt, following) for prompt in texts]
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        options["text_kwargs"].pop("return_mm_token_type_ids", None)
        encoded = self.tokenizer(texts, **options["text_kwargs"])
        self._check_special_mm_tokens(texts, encoded, modalities=["image"])
        return BatchFeature(data={**encoded, **vision}, tensor_type=return_tensors)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> dict[str, list[int]]:
        """As of transformers' own: the tokens of images of (height, width), without the tiles' tags."""
        tiles = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes]
        return {"num_image_tokens": [count * self.image_seq_length for count in tiles]}

    def _fill(self, prompt: str, following: Iterator[int]) -> str:
        first, *rest = prompt.split(self.image_token)
        counts = islice(following, len(rest))
        return first + "".join(
            self.image_text(count) + part for count, part in zip(counts, rest, strict=True)
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
