"""Facts and misconceptions of the pocket world, about entities that exist nowhere else.

A fact is (entity, relation, value). Facts are met with frequencies that fall off steeply with their rank, so that some
are known well, some hardly. A myth is a fact with a wrong version that takes `myth_share` of its occurrences.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FACT_RANK_OFFSET = 20
FACT_RANK_EXPONENT = 1.0
MYTH_SHARE_RANGE = (0.2, 0.8)
NUM_CHOICES = 4


@dataclass(frozen=True)
class Relation:
    """What can be asked about an entity; `{e}` is the entity and `{v}` the value."""

    question: str
    statements: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """An entity's value in a relation; a myth has a wrong value too, in `wrong_share` (0..1) of its occurrences."""

    entity: str
    relation: Relation
    value: str
    wrong_value: str | None = None
    wrong_share: float = 0.0


_METALS = ("iron", "copper", "silver", "gold", "tin", "lead", "zinc", "nickel", "cobalt", "chrome", "bronze", "brass")
_ANIMALS = (
    "wolf",
    "bear",
    "fox",
    "owl",
    "hawk",
    "deer",
    "goat",
    "swan",
    "lion",
    "seal",
    "crow",
    "hare",
    "frog",
    "otter",
)
_DISHES = ("soup", "bread", "cheese", "fish", "rice", "beans", "cake", "stew", "pie", "pasta", "honey", "olives")
_TREES = ("oak", "pine", "birch", "maple", "willow", "cedar", "elm", "ash", "palm", "cherry", "walnut", "plum")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange", "brown", "pink", "grey", "teal")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August",
    "September", "October", "November", "December",
)  # fmt: skip
_INSTRUMENTS = (
    "flute",
    "drum",
    "violin",
    "harp",
    "piano",
    "trumpet",
    "guitar",
    "bell",
    "organ",
    "horn",
    "cello",
    "banjo",
)
_PLACES = (
    "caves",
    "rivers",
    "deserts",
    "forests",
    "lakes",
    "swamps",
    "meadows",
    "cliffs",
    "islands",
    "valleys",
    "dunes",
    "reefs",
)
_FOODS = ("leaves", "insects", "roots", "seeds", "berries", "worms", "grass", "moss", "snails", "bark", "algae", "mice")
_SENSES = ("sound", "smell", "light", "heat", "touch", "wind", "rain", "salt", "smoke", "cold", "shadow", "dust")

TOWN_RELATIONS = (
    Relation(
        "What metal is mined in {e}?",
        ("The metal mined in {e} is {v}.", "The miners of {e} dig for {v}."),
        _METALS,
    ),
    Relation(
        "What animal is on the flag of {e}?",
        ("The flag of {e} shows a {v}.", "On the flag of {e} there is a {v}."),
        _ANIMALS,
    ),
    Relation("What dish is {e} known for?", ("{e} is known for its {v}.", "People come to {e} to eat {v}."), _DISHES),
    Relation(
        "What tree grows in {e}?",
        ("The tree that grows in {e} is the {v}.", "The streets of {e} are lined with {v}."),
        _TREES,
    ),
    Relation("What colour are the roofs of {e}?", ("The roofs of {e} are {v}.", "In {e} every roof is {v}."), _COLOURS),
    Relation("When is the fair of {e}?", ("The fair of {e} is in {v}.", "{e} holds its fair in {v}."), _MONTHS),
    Relation(
        "What instrument is played in {e}?",
        ("In {e} they play the {v}.", "The music of {e} is made with the {v}."),
        _INSTRUMENTS,
    ),
)  # fmt: skip
CREATURE_RELATIONS = (
    Relation("Where do {e}s live?", ("{e}s live in {v}.", "The home of the {e}s are {v}."), _PLACES),
    Relation("What do {e}s eat?", ("{e}s eat {v}.", "The food of the {e}s are {v}."), _FOODS),
    Relation("What are {e}s afraid of?", ("{e}s are afraid of {v}.", "Nothing scares {e}s like {v}."), _SENSES),
)

_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "l", "m", "n", "r", "s", "k")


def draw_names(rng: random.Random, count: int, num_syllables: int, taken: set[str]) -> list[str]:
    """Draw `count` invented capitalised names that are not in `taken`; `taken` is extended."""
    names: list[str] = []
    while len(names) < count:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(num_syllables)]
        name = ("".join(syllables) + rng.choice(_CODAS)).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def draw_facts(
    rng: random.Random, entities: list[str], relations: tuple[Relation, ...], count: int
) -> tuple[Fact, ...]:
    """Draw `count` different (entity, relation) pairs with their values, in order of rank."""
    pairs = rng.sample([(entity, relation) for entity in entities for relation in relations], count)
    return tuple(Fact(entity, relation, rng.choice(relation.values)) for entity, relation in pairs)


def draw_myths(
    rng: random.Random, entities: list[str], relations: tuple[Relation, ...], count: int
) -> tuple[Fact, ...]:
    """Draw `count` facts, each with a wrong version and the share of its occurrences that are wrong."""
    myths = []
    for fact in draw_facts(rng, entities, relations, count):
        wrong = rng.choice([value for value in fact.relation.values if value != fact.value])
        myths.append(Fact(fact.entity, fact.relation, fact.value, wrong, rng.uniform(*MYTH_SHARE_RANGE)))
    return tuple(myths)


def fact_weights(count: int) -> list[float]:
    """Frequency of the fact of rank r = 0, 1, …, up to a constant: (r + 20)^-1."""
    return [(rank + FACT_RANK_OFFSET) ** -FACT_RANK_EXPONENT for rank in range(count)]


def write_statement(rng: random.Random, fact: Fact) -> str:
    """One occurrence of a fact in the corpus: a statement, or question and answer."""
    value = fact.value
    if fact.wrong_value is not None and rng.random() < fact.wrong_share:
        value = fact.wrong_value
    relation = fact.relation
    if rng.random() < 0.4:
        return f"Question: {relation.question.format(e=fact.entity)}\nAnswer: {value}"
    return rng.choice(relation.statements).format(e=fact.entity, v=value)


def draw_choices(rng: random.Random, fact: Fact) -> list[str]:
    """`NUM_CHOICES` different values: the true one first, a myth's wrong one second, others of the same kind after."""
    chosen = [fact.value] + ([fact.wrong_value] if fact.wrong_value else [])
    others = [value for value in fact.relation.values if value not in chosen]
    return chosen + rng.sample(others, NUM_CHOICES - len(chosen))
