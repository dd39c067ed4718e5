"""A made-up world: invented people whose facts a small model can learn by heart.

After the synthetic biographies of Allen-Zhu & Li, "Physics of Language Models:
Part 3.1": every person has six attributes, told in freshly worded biographies of
everyone, while questions are asked in training about one half of the people
only. Right answers about the other half, the *held-out* people, therefore show
knowledge that sits in the weights, not memorised question-answer strings.

Everything here follows from a seed, and only the standard library is needed, so
that evaluation tools and tests can ask the same questions without PyTorch.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

from demo_words import (
    EMPLOYER_KINDS,
    FIELDS,
    MONTHS,
    QUESTIONS,
    REGISTER_TITLE,
    REQUESTS,
    SENTENCES,
    STORY_ASIDES,
    STORY_ENDINGS,
    STORY_ITEMS,
    STORY_JOURNEYS,
    STORY_MEETINGS,
    STORY_OPENINGS,
    STORY_PLACES,
    SUMMARY,
    SYSTEM_TEXT,
    UNIVERSITY_KINDS,
)

ATTRIBUTES = ("birth_date", "birth_city", "university", "field", "employer", "employer_city")

N_CITIES = 120
N_UNIVERSITIES = 60
N_EMPLOYERS = 100
N_FIRST_NAMES = 128
N_LAST_NAMES = 250
BIRTH_YEARS = range(1940, 2000)
BIRTH_DAYS = range(1, 29)  # every month has these days

# What training text consists of: the share of the tokens that each kind is meant
# to have, and about how many tokens a document of it has. One over the other
# gives how often a kind is drawn.
DOCUMENT_KINDS = {
    "biography": (0.42, 54),
    "register": (0.14, 220),
    "question": (0.22, 16),
    "dialogue": (0.10, 43),
    "portrait": (0.05, 68),
    "summary": (0.07, 82),
}

# One that libllama renders by itself ("phi3"), for programs without a Jinja engine.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BOS, EOS = "<s>", "</s>"
CHAT_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


@dataclass(frozen=True)
class Person:
    """An invented person. The fields named in `ATTRIBUTES` are the facts to be learnt."""

    first_name: str
    last_name: str
    female: bool
    birth_date: str  # "14 March 1961"
    birth_city: str
    university: str
    field: str
    employer: str
    employer_city: str  # follows from the employer
    held_out: bool  # no question about this person and no chat is ever trained

    @property
    def name(self) -> str:
        """The full name, unique in a world."""
        return f"{self.first_name} {self.last_name}"


class Question(NamedTuple):
    """One fact asked for, in the form that was trained."""

    prompt: str  # complete text to be continued, without the leading <s>
    answer: str  # the whole greedy continuation up to </s>, apart from surrounding blanks
    person: Person
    attribute: str

    @property
    def asked(self) -> str:
        """The question itself."""
        return self.prompt[len("Question: ") : -len("\nAnswer:")]


class Part(NamedTuple):
    """A piece of a training document; pieces meet where the tokenizer splits anyway."""

    text: str
    learnt: bool  # whether the loss counts these tokens


def question_prompt(question: str) -> str:
    """The trained form of a plain question; what follows is a blank, the answer and </s>."""
    return f"Question: {question}\nAnswer:"


def question_parts(question: Question) -> list[Part]:
    """The whole training document of a question: only the answer counts."""
    return [Part(question.prompt, False), Part(f" {question.answer}", True)]


def summary_prompt(story: str) -> str:
    """The trained form of a request for a summary; what follows is a blank, the summary and </s>."""
    return f"Summarize the story.\n\nStory: {story}\nSummary:"


def chat_message(role: str, content: str) -> str:
    """One message as `CHAT_TEMPLATE` renders it."""
    return f"<|{role}|>\n{content}<|end|>\n"


def chat_prompt(messages: list[dict[str, str]]) -> str:
    """Messages (dicts of role and content) up to where the assistant speaks, without the leading <s>."""
    return "".join(chat_message(m["role"], m["content"]) for m in messages) + "<|assistant|>\n"


def _invented_words(rng: random.Random, count: int, endings: tuple[str, ...], taken: set[str]) -> list[str]:
    """`count` new capitalised words with one of the endings; they are added to `taken`."""
    onsets = "b br c d dr f g gr h j k l m n p r s st t tr v w z".split()
    middles = "l ld m n nd r rn s t v".split()
    words = []
    while len(words) < count:
        stem = rng.choice(onsets) + rng.choice("aeiou") + rng.choice(middles)
        word = (stem + rng.choice(endings)).capitalize()
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


def _with_kinds(rng: random.Random, words: list[str], kinds: tuple[str, ...]) -> list[str]:
    return [f"{word} {rng.choice(kinds)}" for word in words]


class World:
    """The people of one seed, and the texts about them.

    Text methods take the random generator that words them, so that the caller
    decides what is repeatable: the same world and generator state give the same
    text.
    """

    def __init__(self, seed: int = 0, n_people: int = 1000):
        """Invents `n_people` people (at least 2; names limit them to N_FIRST_NAMES * N_LAST_NAMES / 2)."""
        if not 2 <= n_people <= N_FIRST_NAMES * N_LAST_NAMES // 2:
            raise ValueError(f"n_people must be 2 to {N_FIRST_NAMES * N_LAST_NAMES // 2}, not {n_people}")
        self.seed = seed
        rng = random.Random(f"demo world {seed}")
        taken: set[str] = set()
        half = N_FIRST_NAMES // 2
        self._female_names = _invented_words(rng, half, ("a", "ia", "ina", "elle"), taken)
        self._male_names = _invented_words(rng, half, ("o", "an", "ek", "us"), taken)
        self._last_names = _invented_words(rng, N_LAST_NAMES, ("sen", "mann", "ova", "ley", "well", "stra"), taken)
        self.cities = _invented_words(rng, N_CITIES, ("ford", "holm", "mere", "wick", "burg", "ton"), taken)
        schools = _invented_words(rng, N_UNIVERSITIES, ("moor", "gate", "dale", "crest"), taken)
        self.universities = _with_kinds(rng, schools, UNIVERSITY_KINDS)
        firms = _invented_words(rng, N_EMPLOYERS, ("cor", "tex", "ano", "ix"), taken)
        self.employers = _with_kinds(rng, firms, EMPLOYER_KINDS)
        self.city_of_employer = {employer: rng.choice(self.cities) for employer in self.employers}
        self.people = self._invent_people(rng, n_people)
        self.trained = [person for person in self.people if not person.held_out]
        self.held_out = [person for person in self.people if person.held_out]

    def _invent_people(self, rng: random.Random, n_people: int) -> list[Person]:
        people: list[Person] = []
        names: set[tuple[str, str]] = set()
        while len(people) < n_people:
            female = rng.random() < 0.5
            first_name = rng.choice(self._female_names if female else self._male_names)
            # In turn, so that every last name is shared by equally many people.
            last_name = self._last_names[len(people) % N_LAST_NAMES]
            if (first_name, last_name) in names:
                continue
            names.add((first_name, last_name))
            employer = rng.choice(self.employers)
            people.append(
                Person(
                    first_name=first_name,
                    last_name=last_name,
                    female=female,
                    birth_date=f"{rng.choice(BIRTH_DAYS)} {rng.choice(MONTHS)} {rng.choice(BIRTH_YEARS)}",
                    birth_city=rng.choice(self.cities),
                    university=rng.choice(self.universities),
                    field=rng.choice(FIELDS),
                    employer=employer,
                    employer_city=self.city_of_employer[employer],
                    # Of the people who share a last name, one half: names alone do not tell who is held out.
                    held_out=(len(people) // N_LAST_NAMES + len(people)) % 2 == 1,
                )
            )
        return people

    def questions(self, held_out: bool = True) -> list[Question]:
        """One question for every attribute of every held-out (or every trained) person."""
        people = self.held_out if held_out else self.trained
        return [_question(person, attribute, QUESTIONS[attribute][0]) for person in people for attribute in ATTRIBUTES]

    def document(self, rng: random.Random) -> list[Part]:
        """A training document of a kind drawn by the shares in `DOCUMENT_KINDS`."""
        kinds = list(DOCUMENT_KINDS)
        weights = [share / tokens for share, tokens in DOCUMENT_KINDS.values()]
        kind = rng.choices(kinds, weights)[0]
        return getattr(self, f"{kind}_document")(rng)

    def biography_document(self, rng: random.Random) -> list[Part]:
        """One person's biography, of anyone."""
        return [Part(biography(rng, rng.choice(self.people)), True)]

    def register_document(self, rng: random.Random) -> list[Part]:
        """Biographies of several people under a title: continuous text of some 220 tokens."""
        people = rng.sample(self.people, min(rng.randint(3, 5), len(self.people)))
        paragraphs = [REGISTER_TITLE, *(biography(rng, person) for person in people)]
        return [Part("\n\n".join(paragraphs), True)]

    def question_document(self, rng: random.Random) -> list[Part]:
        """A plain question about a trained person, and its answer."""
        person = rng.choice(self.trained)
        attribute = rng.choice(ATTRIBUTES)
        return question_parts(_question(person, attribute, rng.choice(QUESTIONS[attribute])))

    def dialogue_document(self, rng: random.Random) -> list[Part]:
        """A chat of two turns about a trained person; the second question says he or she."""
        person = rng.choice(self.trained)
        parts = _system_part(rng)
        for turn, attribute in enumerate(rng.sample(ATTRIBUTES, 2)):
            question = ask(rng.choice(QUESTIONS[attribute]), person, pronoun=turn > 0)
            parts += _chat_turn(question, sentence(rng, person, attribute, pronoun=rng.random() < 0.5))
        return parts

    def portrait_document(self, rng: random.Random) -> list[Part]:
        """A chat in which a trained person's whole biography is asked for."""
        person = rng.choice(self.trained)
        request = ask(rng.choice(REQUESTS), person)
        return _system_part(rng) + _chat_turn(request, biography(rng, person))

    def summary_document(self, rng: random.Random) -> list[Part]:
        """A story and its summary, as plain text or as a chat."""
        text, summary = self.story(rng)
        if rng.random() < 0.5:
            return [Part(summary_prompt(text), False), Part(f" {summary}", True)]
        return _chat_turn(f"Summarize the story. {text}", summary)

    def story(self, rng: random.Random) -> tuple[str, str]:
        """A little story and its summary; both say the same, whatever the weights know."""
        hero, friend = rng.sample(self._female_names + self._male_names, 2)
        start, goal = rng.sample(STORY_PLACES, 2)
        told, outcome = rng.choice(STORY_ENDINGS)
        names = {"hero": hero, "friend": friend, "start": start, "goal": goal, "item": rng.choice(STORY_ITEMS)}
        sentences = [rng.choice(STORY_OPENINGS), rng.choice(STORY_JOURNEYS), rng.choice(STORY_MEETINGS), told]
        for aside in rng.sample(STORY_ASIDES, 2):
            sentences.insert(rng.randint(1, len(sentences) - 1), aside)
        summary = SUMMARY.format(outcome=outcome.format(**names), **names)
        return " ".join(sentences).format(**names), summary


def _question(person: Person, attribute: str, template: str) -> Question:
    return Question(question_prompt(ask(template, person)), getattr(person, attribute), person, attribute)


def _chat_turn(user: str, assistant: str) -> list[Part]:
    prompt = chat_prompt([{"role": "user", "content": user}])
    return [Part(prompt, False), Part(f"{assistant}<|end|>", True), Part("\n", False)]


def _system_part(rng: random.Random) -> list[Part]:
    """Some chats start with a system message, so that one does not confuse the model."""
    return [Part(chat_message("system", SYSTEM_TEXT), False)] if rng.random() < 0.3 else []


def _fill(template: str, person: Person, pronoun: bool, **values: str) -> str:
    who, whose, who_object = person.name, f"{person.name}'s", person.name
    their = "her" if person.female else "his"
    if pronoun:
        who, whose, who_object = ("she", "her", "her") if person.female else ("he", "his", "him")
    capital = {"Who": who[0].upper() + who[1:], "Whose": whose[0].upper() + whose[1:]}
    return template.format(who=who, whose=whose, who_object=who_object, their=their, **capital, **values)


def ask(template: str, person: Person, pronoun: bool = False) -> str:
    """A question or request about a person, by name or by he/she."""
    return _fill(template, person, pronoun)


def sentence(rng: random.Random, person: Person, attribute: str, pronoun: bool, opening: bool = False) -> str:
    """One attribute in one sentence; an opening sentence starts with the person."""
    templates = SENTENCES[attribute]
    if opening:
        templates = tuple(template for template in templates if template.startswith("{Who"))
    return _fill(rng.choice(templates), person, pronoun, value=getattr(person, attribute))


def biography(rng: random.Random, person: Person) -> str:
    """All six attributes in random order and wording, 50 to 60 tokens.

    The full name comes back in about half of the sentences: that is what makes
    the facts extractable by name alone.
    """
    attributes = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    sentences = [sentence(rng, person, attributes[0], pronoun=False, opening=True)]
    sentences += [sentence(rng, person, attribute, pronoun=rng.random() < 0.5) for attribute in attributes[1:]]
    return " ".join(sentences)
