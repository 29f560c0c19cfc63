"""What is kept of earlier questions changes the time of an answer, and nothing of the answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.conversation import Conversation
from edge.model import EdgeModel
from edge.prompt import Message, Part, user
from tests.edge.conftest import noise

IMAGE, OTHER = noise(96, 64), noise(96, 64, seed=1)
QUESTIONS = (
    "what is in the picture?",
    "what is the highest bar?",
    "read the text.",
    "what is in the picture?",
)


@pytest.fixture
def fresh(edge_model: EdgeModel) -> EdgeModel:
    edge_model.forget()
    return edge_model


@pytest.fixture(scope="module")
def without(build_folder: Path) -> EdgeModel:
    return EdgeModel.open(build_folder, threads=1, reuse=False)


def counting(model: EdgeModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every run of the decoder, and 0 for every image that is encoded."""
    runs: list[int] = []
    decode, encode = model.sessions.decode, model.sessions.encode_image
    monkeypatch.setattr(
        model.sessions,
        "decode",
        lambda z, *given, **more: runs.append(z.shape[1]) or decode(z, *given, **more),
    )
    monkeypatch.setattr(
        model.sessions, "encode_image", lambda *given, **more: runs.append(0) or encode(*given, **more)
    )
    return runs


def test_a_second_question_runs_its_own_tokens_alone(
    fresh: EdgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counting(fresh, monkeypatch)
    first = fresh.answer((IMAGE, QUESTIONS[0]), max_new_tokens=1)
    assert runs == [0, first.prompt_tokens] and first.reused_tokens == 0
    runs.clear()
    second = fresh.answer((IMAGE, QUESTIONS[2]), max_new_tokens=1)
    assert runs == [second.prompt_tokens - second.reused_tokens]
    image_ends = int(np.flatnonzero(fresh.prompt((IMAGE, QUESTIONS[2])).is_image_S)[-1])
    assert second.reused_tokens > image_ends
    runs.clear()
    assert fresh.answer((IMAGE, QUESTIONS[2]), max_new_tokens=1).token_ids == second.token_ids
    assert runs == [1]


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_the_same_with_and_without(fresh: EdgeModel, without: EdgeModel, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [noise(*size, seed=seed) for size in ((64, 64), (64, 64), (40, 90))]
    images[1] = noise(64, 64, seed=seed + 10)
    for _ in range(25):
        chosen = [images[place] for place in generator.integers(0, 3, int(generator.integers(0, 3)))]
        parts: tuple[Part, ...] = (*chosen, QUESTIONS[int(generator.integers(0, 4))])
        expected = without.answer(parts, max_new_tokens=10)
        found = fresh.answer(parts, max_new_tokens=10)
        assert found.token_ids == expected.token_ids and expected.reused_tokens == 0
    assert fresh.slots.hits > 5 and fresh.pictures.hits > 5
    assert without.slots.held_bytes == without.pictures.held_bytes == 0


def test_an_image_of_the_same_size_is_another_image(fresh: EdgeModel, without: EdgeModel) -> None:
    """Their prompts have the same ids."""
    pair = [(IMAGE, QUESTIONS[0]), (OTHER, QUESTIONS[0])]
    ids = [fresh.prompt(parts).ids_S for parts in pair]
    assert np.array_equal(*ids)
    answers = [fresh.forced_logits(parts, []) for parts in pair]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    for parts in (*pair, *pair):
        assert (
            fresh.answer(parts, max_new_tokens=8).token_ids
            == without.answer(parts, max_new_tokens=8).token_ids
        )
    assert fresh.answer(pair[1], max_new_tokens=8).reused_tokens > 0


def test_one_pixel_makes_another_image(fresh: EdgeModel) -> None:
    changed = IMAGE.copy()
    changed.putpixel((5, 5), tuple(255 - value for value in IMAGE.getpixel((5, 5))))
    looks = [fresh.prompt((image, "?")).looks[0].digest for image in (IMAGE, IMAGE.copy(), changed)]
    assert looks[0] == looks[1] != looks[2]


def test_several_images_keep_their_places(fresh: EdgeModel, without: EdgeModel) -> None:
    for images in ((IMAGE, OTHER), (OTHER, IMAGE), (IMAGE, IMAGE), (IMAGE, OTHER)):
        parts = (*images, "what differs?")
        assert (
            fresh.answer(parts, max_new_tokens=8).token_ids
            == without.answer(parts, max_new_tokens=8).token_ids
        )
    assert fresh.pictures.misses == 2 or fresh.pictures.hits > 0


def test_every_family_reuses(family_pair: SimpleNamespace) -> None:
    model = family_pair.model
    model.forget()
    alone = [model.forced_logits((IMAGE, question), [])[0] for question in QUESTIONS[:3]]
    answers = [model.answer((IMAGE, question), max_new_tokens=1) for question in QUESTIONS[:3]]
    assert [int(logits_V.argmax()) for logits_V in alone] == [answer.token_ids[0] for answer in answers]
    assert all(2 * answer.reused_tokens > answer.prompt_tokens for answer in answers[1:])


def test_what_is_kept_stays_within_its_share(build_folder: Path) -> None:
    model = EdgeModel.open(build_folder, threads=1)
    limit = 3 * model.sessions.layout.token_bytes * 448
    small = EdgeModel.open(build_folder, threads=1, memory_bytes=model_weights(model) + int(2 * limit / 0.4))
    assert small.budget.kept_bytes // 2 == pytest.approx(limit, rel=0.01)
    for seed in range(12):
        small.answer((noise(96, 96, seed=seed), "what?"), max_new_tokens=4)
        assert small.slots.held_bytes <= limit and small.pictures.held_bytes <= limit
    assert small.slots.held_bytes > 0
    again = small.answer((noise(96, 96, seed=11), "which?"), max_new_tokens=4)
    assert again.reused_tokens > 0


def model_weights(model: EdgeModel) -> int:
    from edge.model import weights_bytes

    return weights_bytes(model.build)


def test_a_conversation_is_the_whole_of_its_turns(fresh: EdgeModel, without: EdgeModel) -> None:
    chat = Conversation(fresh, system="you see everything.")
    said: list[Message] = [Message(role="system", parts=("you see everything.",))]
    for number, parts in enumerate([(IMAGE, QUESTIONS[0]), (QUESTIONS[1],), (OTHER, QUESTIONS[2])]):
        answer = chat.ask(*parts, max_new_tokens=10)
        said.append(user(*parts))
        assert answer.token_ids == without.answer(said, max_new_tokens=10).token_ids
        assert (answer.reused_tokens > 0) == (number > 0)
        said.append(Message(role="assistant", parts=(answer.text,)))
    assert chat.messages == said


def test_a_turn_that_fails_or_is_stopped_was_not_said(fresh: EdgeModel) -> None:
    chat = Conversation(fresh)
    with pytest.raises(Exception, match="temprature"):
        chat.ask("hello", temprature=1)
    stream = chat.stream(IMAGE, "what?", max_new_tokens=50, eos_token_ids=())
    next(iter(stream))
    stream.close()
    assert chat.messages == []
    assert chat.ask("hello", max_new_tokens=2).prompt_tokens > 0 and len(chat.messages) == 2
