"""InternLM2's sentencepiece model as a fast tokenizer.

    text --(split at added and user-defined tokens)--> --(space -> U+2581)--> --(merges by score)--> pieces
                                             characters without a piece become their UTF-8 bytes

sentencepiece merges the pair whose result has the best score; a list of merges in the order of those scores
does the same. Model files that need more (a prefix space, a normalisation table) are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from genrecal.core.errors import ModelError

SPACE = "\u2581"
# sentencepiece's numbers for the type of a piece and of a model.
NORMAL, USER_DEFINED, UNUSED = 1, 4, 5
BPE_MODEL = 2


def read_internlm2(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a sentencepiece file.

    Args:
        path: `tokenizer.model`.
        settings: tokenizer_config.json: `added_tokens_decoder` names tokens by id, those that replace a piece
            included; `add_bos_token` says whether a text starts with `bos_token`.

    Raises:
        ModelError: no such file, or a model that the fast tokenizer would read otherwise.
    """
    proto = _read(path)
    added = {
        int(number): AddedToken(**entry) for number, entry in settings.get("added_tokens_decoder", {}).items()
    }
    pieces = [piece.piece for piece in proto.pieces]
    names = [added[number].content if number in added else piece for number, piece in enumerate(pieces)]
    vocabulary = {name: number for number, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise ModelError("two of its pieces have the same name", where=path)
    unknown = names[proto.trainer_spec.unk_id]
    tokenizer = Tokenizer(
        BPE(vocabulary, _merges(proto), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    # Behind the pieces, ids go up in the order in which tokens are added.
    tokenizer.add_tokens([added[number] for number in sorted(added)])
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=False)
            for number, piece in enumerate(proto.pieces)
            if piece.type == USER_DEFINED and number not in added
        ]
    )
    for number, token in added.items():
        if tokenizer.token_to_id(token.content) != number:
            raise ModelError(
                f"'{token.content}' cannot have the id {number}", where=path.parent / "tokenizer_config.json"
            )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if settings.get("add_bos_token", True):
        bos = settings.get("bos_token", "<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError("no such tokenizer file", where=path, fix="Download it")
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose place differs between its versions
        raise ModelError("is no sentencepiece model", where=path) from error
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    problems = {
        "is no BPE model": trainer.model_type != BPE_MODEL,
        "has no byte fallback": not trainer.byte_fallback,
        "puts a space before the text": normalizer.add_dummy_prefix,
        "removes spaces": normalizer.remove_extra_whitespaces,
        "leaves spaces as they are": not normalizer.escape_whitespaces,
        "has a normalisation table": bool(normalizer.precompiled_charsmap),
        "has unused pieces": any(piece.type == UNUSED for piece in proto.pieces),
    }
    for problem, there in problems.items():
        if there:
            raise ModelError(f"{problem}, which InternLM2's tokenizers do not", where=path)
    return proto


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, best score first; sentencepiece's ids follow the scores."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    ranked = sorted(scores, key=lambda piece: -scores[piece])  # stable: of equal scores the lower id first
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
