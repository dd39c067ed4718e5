"""The made-up world of tools/demo_world.py: deterministic, consistent, and honest about who is held out."""

import random

import pytest

import demo_world
from demo_world import ATTRIBUTES, World


@pytest.fixture(scope="module")
def world():
    return World(seed=0)


def texts(world, seed, count):
    rng = random.Random(seed)
    return ["".join(part.text for part in world.document(rng)) for _ in range(count)]


def test_same_seed_same_world_and_texts(world):
    again = World(seed=0)
    assert again.people == world.people
    assert again.questions() == world.questions()
    assert texts(again, 7, 50) == texts(world, 7, 50)


def test_other_seed_other_world(world):
    assert World(seed=1).people != world.people
    assert texts(world, 7, 20) != texts(world, 8, 20)


def test_people_are_consistent(world):
    assert len(world.people) == 1000
    assert len({person.name for person in world.people}) == 1000
    assert len(world.held_out) == len(world.trained) == 500
    assert all(person.employer_city == world.city_of_employer[person.employer] for person in world.people)


def test_held_out_people_share_names_with_trained_ones(world):
    assert {p.last_name for p in world.held_out} == {p.last_name for p in world.trained}


def test_questions_cover_every_fact_once(world):
    for held_out, people in ((True, world.held_out), (False, world.trained)):
        questions = world.questions(held_out)
        assert [(q.person, q.attribute) for q in questions] == [(p, a) for p in people for a in ATTRIBUTES]
        for prompt, answer, person, attribute in questions:
            assert prompt.startswith("Question: ") and prompt.endswith("?\nAnswer:")
            assert person.name in prompt
            assert answer == getattr(person, attribute)


def test_held_out_people_occur_in_biographies_only(world):
    rng = random.Random(3)
    kinds = (world.question_document, world.dialogue_document, world.portrait_document, world.summary_document)
    text = "\n".join(part.text for kind in kinds for _ in range(1000) for part in kind(rng))
    assert any(person.name in text for person in world.trained)
    assert not any(person.name in text for person in world.held_out)


def test_biography_states_every_fact(world):
    rng = random.Random(4)
    for person in world.people[:200]:
        text = demo_world.biography(rng, person)
        assert text.startswith(person.name)
        assert all(getattr(person, attribute) in text for attribute in ATTRIBUTES)
        assert "{" not in text


def test_pronouns_agree(world):
    rng = random.Random(5)
    for person in world.people[:200]:
        words = demo_world.biography(rng, person).replace(".", "").lower().split()
        wrong = {"he", "his", "him"} if person.female else {"she", "her"}
        assert not wrong & set(words)


def test_every_kind_of_document_is_drawn(world):
    joined = "\n".join(texts(world, 6, 500))
    for mark in ("Question: ", "Summarize the story.", demo_world.REGISTER_TITLE, "<|system|>", "<|assistant|>"):
        assert mark in joined


def test_only_answers_are_learnt(world):
    question, answer = world.question_document(random.Random(1))
    assert (question.learnt, answer.learnt) == (False, True)
    assert answer.text.startswith(" ")


def test_summary_tells_of_the_story(world):
    rng = random.Random(2)
    for _ in range(100):
        story, summary = world.story(rng)
        hero, item = summary.split()[0], summary.split()[3]
        assert hero in story and item in story


def test_chat_prompt_is_what_the_template_renders():
    jinja2 = pytest.importorskip("jinja2")
    messages = [
        {"role": "user", "content": "Where was Mira Tolven born?"},
        {"role": "assistant", "content": "She was born in Tarven."},
        {"role": "user", "content": "Where does she work?"},
    ]
    rendered = jinja2.Template(demo_world.CHAT_TEMPLATE).render(
        messages=messages, bos_token="<s>", add_generation_prompt=True
    )
    assert rendered == "<s>" + demo_world.chat_prompt(messages)


@pytest.mark.parametrize("n_people", [0, 1, 10**6])
def test_impossible_sizes_are_refused(n_people):
    with pytest.raises(ValueError, match="n_people"):
        World(n_people=n_people)
