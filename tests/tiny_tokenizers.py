"""The tokenizers and chat templates of the tiny families, each in the manner of its published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizerFast, PreTrainedTokenizerFast, Qwen2TokenizerFast

from genrecal.demo.pair import CHAT_TEMPLATE, train_tokenizer

IDEFICS_TURNS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Images of a turn come first; a past answer is written otherwise than the next one is asked for.
LLAVA_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}\n{{ part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TURNS = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
)


def qwen_tokenizer(corpus: Iterable[str], vocabulary: int, special: tuple[str, ...], **names: str) -> Any:
    return Qwen2TokenizerFast(
        tokenizer_object=train_tokenizer(corpus, special, vocabulary),
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            token for token in special if token not in ("<|im_end|>", "<|endoftext|>")
        ],
        extra_special_tokens=names,
        model_max_length=4096,
    )


def llama_tokenizer(
    corpus: Iterable[str], vocabulary: int, special: tuple[str, ...], *, end: str, **names: str
) -> Any:
    """Llama 3's manner: byte-level, and a first token that the tokenizer adds by itself."""
    tokenizer = train_tokenizer(corpus, special, vocabulary)
    first = special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=first,
        eos_token=end,
        pad_token=special[1],
        additional_special_tokens=list(special[2:]),
        extra_special_tokens=names,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=4096,
    )


def gemma_tokenizer(corpus: Iterable[str], vocabulary: int, special: tuple[str, ...]) -> Any:
    """SentencePiece's manner: spaces as ▁ within tokens, bytes for what the vocabulary lacks."""
    ends = ("<pad>", "<eos>", "<bos>", "<unk>")
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁\n]+|\n|▁+"), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*ends, *(f"<0x{value:02X}>" for value in range(256))],
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    # Anew from what was learned: the entries that stand for bytes must not count as special tokens.
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=[tuple(pair) for pair in learned["merges"]],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return GemmaTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(special),
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        model_max_length=4096,
    )
