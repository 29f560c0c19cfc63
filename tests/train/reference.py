"""Algorithms 1 to 3 in float64, one sample at a time: no padding, no batches, no code of genrecal.

Written from the paper (section 3.2, Appendix E) and from the reading of its positions that this project
chose: answer token t is predicted one position earlier, so the first one from the last question position,
where the Recalibrator reads its question feature. Weights are read from the modules; the arithmetic of the
decoder blocks (RMSNorm, grouped-query attention with rotary positions, SwiGLU) is spelt out here. Only the
vision encoders run in transformers (in float64, one sample at a time): no stage and no loss touches them.

Shapes: N positions of one sample, Q of its question, A of its answer, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """One sample's question and answer ids and pixels, as one VLM reads them."""

    question: list[int]
    answer: list[int]
    vision: dict[str, Tensor]


def in_float64(model: Any) -> Any:
    return copy.deepcopy(model).double().eval()


def rms_norm(x_ND: Tensor, norm: Any) -> Tensor:
    scale = torch.sqrt((x_ND**2).mean(1, keepdim=True) + norm.variance_epsilon)
    return norm.weight.double() * x_ND / scale


def linear(x: Tensor, layer: Any) -> Tensor:
    out = x @ layer.weight.double().T
    return out if layer.bias is None else out + layer.bias.double()


def rotate(x_NE: Tensor, positions_N3: Tensor, theta: float, sections: list[int]) -> Tensor:
    """Rotary positions of one head: pair i is (x[i], x[i + E/2]) and follows one of three positions."""
    half = x_NE.shape[1] // 2
    turned = x_NE.clone()
    axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
    for i in range(half):
        angle_N = positions_N3[:, axes[i]].double() / theta ** (i / half)
        a, b = x_NE[:, i], x_NE[:, i + half]
        turned[:, i] = a * torch.cos(angle_N) - b * torch.sin(angle_N)
        turned[:, i + half] = b * torch.cos(angle_N) + a * torch.sin(angle_N)
    return turned


def decoder_blocks(blocks: Any, x_ND: Tensor, positions_N3: Tensor, config: Any) -> Tensor:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    sections = (config.rope_scaling or {}).get("mrope_section", [size // 2])
    future_NN = torch.ones(len(x_ND), len(x_ND), dtype=torch.bool).triu(1)
    for block in blocks:
        normed = rms_norm(x_ND, block.input_layernorm)
        attention = block.self_attn
        q, k, v = (linear(normed, p) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        outputs = []
        for head in range(heads):
            group = head * groups // heads
            mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            q_NE = rotate(q[:, mine], positions_N3, config.rope_theta, sections)
            k_NE = rotate(k[:, theirs], positions_N3, config.rope_theta, sections)
            scores_NN = (q_NE @ k_NE.T / size**0.5).masked_fill(future_NN, -torch.inf)
            outputs.append(torch.softmax(scores_NN, 1) @ v[:, theirs])
        x_ND = x_ND + linear(torch.cat(outputs, 1), attention.o_proj)
        normed = rms_norm(x_ND, block.post_attention_layernorm)
        gate = linear(normed, block.mlp.gate_proj)
        x_ND = x_ND + linear(
            gate * torch.sigmoid(gate) * linear(normed, block.mlp.up_proj), block.mlp.down_proj
        )
    return x_ND


def line(count: int) -> Tensor:
    """Plain positions 0..count-1, the same on all three axes."""
    return torch.arange(count)[:, None].expand(-1, 3)


def qwen2_vl_positions(ids: list[int], grids: Tensor | None, config: Any) -> Tensor:
    """Text counts on; an image's tokens share their time and count rows and columns; text goes on behind."""
    rows, at, image = [], 0, 0
    number = 0
    while number < len(ids):
        if ids[number] != config.image_token_id:
            rows.append((at, at, at))
            at, number = at + 1, number + 1
            continue
        _, height, width = (int(n) for n in grids[image])
        height, width = height // 2, width // 2
        rows += [(at, at + row, at + column) for row in range(height) for column in range(width)]
        at, number, image = at + max(height, width), number + height * width, image + 1
    return torch.tensor(rows)


def embedded(model64: Any, sides: Sides) -> tuple[Tensor, Tensor]:
    """What the body's first layer takes, [N, D]: words and projected images; and the positions, [N, 3]."""
    ids = sides.question + sides.answer
    config = model64.config
    x_ND = model64.get_input_embeddings().weight[torch.tensor(ids)]
    positions_N3 = line(len(ids))
    if sides.vision:
        pixels = sides.vision["pixel_values"].double()
        if config.model_type == "qwen2_vl":
            grids = sides.vision["image_grid_thw"]
            images = model64.model.visual(pixels, grid_thw=grids)
            positions_N3 = qwen2_vl_positions(ids, grids, config)
        else:
            images = model64.get_image_features(pixels).flatten(0, 1)
        places = torch.tensor([number for number, one in enumerate(ids) if one == config.image_token_id])
        x_ND = x_ND.index_copy(0, places, images.to(x_ND.dtype))
    return x_ND, positions_N3


def residual(model64: Any, sides: Sides, blocks: int) -> Tensor:
    """The residual stream after so many blocks of the body, without a norm, [N, D]."""
    x_ND, positions_N3 = embedded(model64, sides)
    text = model64.get_decoder()
    return decoder_blocks(text.layers[:blocks], x_ND, positions_N3, text.config)


def vlm_body(model64: Any, sides: Sides) -> Tensor:
    """[z_q, z_a] = VLM-body([q, a]): what the head reads, [N, D]."""
    text = model64.get_decoder()
    return rms_norm(residual(model64, sides, len(text.layers)), text.norm)


def head(model64: Any, z_ND: Tensor) -> Tensor:
    return linear(z_ND, model64.get_output_embeddings())


def recalibrate(recalibrator: Any, sequence_ND: Tensor) -> Tensor:
    """rec_body -> rec_proj_post -> norm over a sequence that has passed rec_proj_pre where it must."""
    return speak(recalibrator, rec_body(recalibrator, sequence_ND))


def rec_body(recalibrator: Any, sequence_ND: Tensor) -> Tensor:
    config = recalibrator.rec_body.config
    return decoder_blocks(recalibrator.rec_body.layers, sequence_ND, line(len(sequence_ND)), config)


def speak(recalibrator: Any, hidden_ND: Tensor) -> Tensor:
    out = linear(hidden_ND, recalibrator.rec_proj_post)
    norm = recalibrator.norm
    if isinstance(norm, torch.nn.RMSNorm):
        return norm.weight.double() * out / torch.sqrt((out**2).mean(1, keepdim=True) + norm.eps)
    mean = out.mean(1, keepdim=True)
    spread = torch.sqrt(((out - mean) ** 2).mean(1, keepdim=True) + norm.eps)
    return norm.weight.double() * (out - mean) / spread + norm.bias.double()


def cross_entropy(logits_AV: Tensor, labels: list[int]) -> Tensor:
    """Per token, [A]."""
    return torch.stack(
        [torch.logsumexp(row, 0) - row[label] for row, label in zip(logits_AV, labels, strict=True)]
    )


def divergence(target_AV: Tensor, guess_AV: Tensor) -> Tensor:
    """KL(target || guess) per token, [A]."""
    p = torch.softmax(target_AV, 1)
    return (p * (torch.log(p) - torch.log(torch.softmax(guess_AV, 1)))).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Per answer token, [A] each, and the two features whose gradients a test may ask for."""

    ar: Tensor
    kl: Tensor
    reg_ar: Tensor
    reg_kl: Tensor
    sft: Tensor
    teacher_ar: Tensor


def algorithms(
    *,
    student64: Any,
    teacher64: Any,
    recalibrator: Any,
    student: Sides,
    teacher: Sides,
    answer_input: str,
    z_s: Tensor | None = None,
    z_q: Tensor | None = None,
) -> Terms:
    """Every term of Algorithms 1, 2 and 3 for one sample.

    Args:
        student64, teacher64: the VLMs in float64.
        recalibrator: the module whose weights are read.
        student, teacher: the sample as each VLM reads it.
        answer_input: "features" or "embeddings".
        z_s: the student's features, when a test wants to differentiate by them.
        z_q: question features that take the place of the student's own.
    """
    questions_s, questions_l = len(student.question), len(teacher.question)
    with torch.no_grad():
        z_l = vlm_body(teacher64, teacher)
    z_s = vlm_body(student64, student) if z_s is None else z_s
    z_q_s = z_s[:questions_s] if z_q is None else z_q
    z_q_l, z_a_l = z_l[:questions_l], z_l[questions_l:]
    answer = z_a_l
    if answer_input == "embeddings":
        answer = teacher64.get_input_embeddings().weight[torch.tensor(teacher.answer)].detach()
    count = len(teacher.answer)
    # The teacher's own prediction of every answer token, the first from its last question feature.
    target = head(teacher64, z_l[questions_l - 1 : questions_l - 1 + count])

    main = recalibrate(recalibrator, torch.cat([z_q_s, linear(answer, recalibrator.rec_proj_pre)]))
    main = head(teacher64, main[len(z_q_s) - 1 : len(z_q_s) - 1 + count])
    regular = recalibrate(recalibrator, linear(torch.cat([z_q_l, answer]), recalibrator.rec_proj_pre))
    regular = head(teacher64, regular[questions_l - 1 : questions_l - 1 + count])
    own = head(student64, z_s[questions_s - 1 : questions_s - 1 + len(student.answer)])
    return Terms(
        ar=cross_entropy(main, teacher.answer),
        kl=divergence(target, main),
        reg_ar=cross_entropy(regular, teacher.answer),
        reg_kl=divergence(target, regular),
        sft=cross_entropy(own, student.answer),
        teacher_ar=cross_entropy(target, teacher.answer),
    )
