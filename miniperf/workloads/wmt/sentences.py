"""English sentences and their German translations, drawn from a grammar of both languages at once.

Numbers, years and ordinals are worded by the package `num2words`; the rest is a small lexicon. A clause is drawn and
worded in both languages, in German in one of three orders. They are main (`er hat am Montag zwei Bücher gekauft`),
inverted after a fronted time (`am Montag hat er ...`) and subordinate with the verb last (`weil er am Montag zwei
Bücher gekauft hat`). Like a human translator the grammar sometimes takes a rarer German synonym.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from num2words import num2words

from miniperf.workloads.wmt.lexicon import (
    ADJECTIVES,
    ARTICLES,
    AUXILIARIES,
    CITIES,
    HAVE,
    MONTHS,
    NOUNS,
    OPENINGS,
    PREFIXES,
    SUBJECTS,
    UNITS,
    VERBS,
    WEEKDAYS,
)  # fmt: skip

T = TypeVar("T")
Pair = tuple[str, str]  # an English phrase and its German translation


@dataclass(frozen=True)
class Clause:
    """German: subject, finite verb, time, other things, and what stands at the end: participle, infinitive, prefix."""

    english: str
    english_time: str
    subject: str
    finite: str
    time: str
    rest: str
    tail: str

    def main(self) -> str:
        return _join(self.subject, self.finite, self.time, self.rest, self.tail)

    def inverted(self) -> str:
        return _join(self.time, self.finite, self.subject, self.rest, self.tail)

    def subordinate(self) -> str:
        # A separated prefix is written together with its verb again.
        verbs = self.tail + self.finite if self.tail in PREFIXES else _join(self.tail, self.finite)
        return _join(self.subject, self.time, self.rest, verbs)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def cardinal(n: int) -> Pair:
    return num2words(n).replace(",", ""), num2words(n, lang="de")


def year(n: int) -> Pair:
    return num2words(n, to="year").replace(",", ""), num2words(n, to="year", lang="de")


def ordinal(n: int) -> Pair:
    """German without its ending: `erste`, to which the dative adds an n."""
    return num2words(n, to="ordinal"), num2words(n, to="ordinal", lang="de")


def clock(hour: int, minute: int) -> Pair:
    """The time of day in words, as it is said: `halb sechs` for half past five.

    Args:
        hour: 1 to 12.
        minute: 0, 15, 30 or 45.
    """
    (now, jetzt), (following, naechste) = _hour(hour), _hour(hour % 12 + 1)
    return {
        0: (f"{now} o'clock", f"{'ein' if hour == 1 else jetzt} Uhr"),
        15: (f"a quarter past {now}", f"Viertel nach {jetzt}"),
        30: (f"half past {now}", f"halb {naechste}"),
        45: (f"a quarter to {following}", f"Viertel vor {naechste}"),
    }[minute]


def _hour(hour: int) -> Pair:
    return num2words(hour), "eins" if hour == 1 else num2words(hour, lang="de")


class Grammar:
    """Draws sentence pairs.

    Args:
        rng: all randomness comes from it.
        synonym_share: how often the rarer of two German words is taken.
    """

    def __init__(self, rng: np.random.RandomState, synonym_share: float) -> None:
        self.rng = rng
        self.synonym_share = synonym_share

    def sentence(self) -> Pair:
        """One English sentence and its German translation."""
        clause = self.clause()
        kind = self.rng.rand()
        if kind < 0.4 and clause.time:
            return _join(clause.english_time, clause.english), clause.inverted()
        english = _join(clause.english, clause.english_time)
        if kind < 0.7:
            return english, clause.main()
        opening, anfaenge = self.word(OPENINGS)
        return f"{opening} {english}", f"{self.synonym(anfaenge)} {clause.subordinate()}"

    def clause(self) -> Clause:
        return self.one([self.past, self.past, self.modal, self.modal, self.price, self.train, self.place])()

    def past(self) -> Clause:
        subject, subjekt, person = self.word(SUBJECTS)
        _, verb, verben = self.word(VERBS)
        (english, german), (when, wann) = self.things(), self.time()
        tail = self.synonym(verben)[1]
        return Clause(f"{subject} {verb} {english}", when, subjekt, _form(HAVE, person), wann, german, tail)

    def modal(self) -> Clause:
        subject, subjekt, person = self.word(SUBJECTS)
        verb, _, verben = self.word(VERBS)
        words, woerter = self.word(AUXILIARIES)
        (english, german), (when, wann) = self.things(), self.time()
        tail = self.synonym(verben)[0]
        auxiliary = words[person == "3"]
        finite = _form(woerter, person)
        return Clause(f"{subject} {auxiliary} {verb} {english}", when, subjekt, finite, wann, german, tail)

    def price(self) -> Clause:
        (subject, subjekt), (price, preis) = self.thing(), cardinal(self.rng.randint(2, 100))
        return Clause(f"{subject} costs {price} euros", "", subjekt, "kostet", "", f"{preis} Euro", "")

    def train(self) -> Clause:
        (city, stadt), (platform, gleis) = self.word(CITIES), cardinal(self.rng.randint(2, 13))
        when, wann = clock(self.rng.randint(1, 13), 15 * self.rng.randint(4))
        if self.rng.rand() < 0.5:
            english, subjekt, finite = f"the train to {city} leaves from platform {platform}", "nach", "fährt"
            rest, tail = f"von Gleis {gleis}", "ab"
        else:
            english, subjekt, finite = f"the train from {city} arrives on platform {platform}", "aus", "kommt"
            rest, tail = f"auf Gleis {gleis}", "an"
        return Clause(english, f"at {when}", f"der Zug {subjekt} {stadt}", finite, f"um {wann}", rest, tail)

    def place(self) -> Clause:
        (number, zahl), (adjective, adjektive) = ordinal(self.rng.randint(2, 13)), self.word(ADJECTIVES)
        floor, stock = ordinal(self.rng.randint(2, 13))
        noun, wort = self.one([("room", "das {} Zimmer"), ("door", "die {} Tür"), ("table", "der {} Tisch")])
        subjekt, rest = f"{wort.format(zahl)} im {stock}n Stock", self.synonym(adjektive)[0]
        return Clause(f"the {number} {noun} on the {floor} floor is {adjective}", "", subjekt, "ist", "", rest, "")

    def thing(self) -> Pair:
        """A definite noun with an adjective, as a subject."""
        noun, _, nomen = self.word(NOUNS)
        adjective, adjektive = self.word(ADJECTIVES)
        gender, wort, _ = self.synonym(nomen)
        return f"the {adjective} {noun}", f"{ARTICLES[gender]} {self.synonym(adjektive)[1]} {wort}"

    def things(self) -> Pair:
        """A number of things, as an object; the smaller numbers are the more frequent."""
        number, zahl = cardinal(int(np.exp(self.rng.uniform(np.log(2), np.log(13)))))
        _, noun, nomen = self.word(NOUNS)
        wort = self.synonym(nomen)[2]
        if self.rng.rand() < 0.5:
            return f"{number} {noun}", f"{zahl} {wort}"
        adjective, adjektive = self.word(ADJECTIVES)
        return f"{number} {adjective} {noun}", f"{zahl} {self.synonym(adjektive)[1]} {wort}"

    def time(self) -> Pair:
        kind = self.rng.randint(5)
        if kind == 0:
            when, wann = clock(self.rng.randint(1, 13), 15 * self.rng.randint(4))
            return f"at {when}", f"um {wann}"
        if kind == 1:
            (unit, einheit), (number, zahl) = self.one(UNITS), cardinal(self.rng.randint(2, 13))
            if self.rng.rand() < 0.5:
                return f"{number} {unit} ago", f"vor {zahl} {einheit}"
            return f"in {number} {unit}", f"in {zahl} {einheit}"
        if kind == 2:
            when, wann = year(self.rng.randint(2000, 2030))
            return f"in {when}", self.synonym([f"im Jahr {wann}", wann])
        (day, tag), (month, monat) = ordinal(self.rng.randint(1, 32)), self.one(MONTHS)
        if kind == 3:
            return f"on the {day} of {month}", f"am {tag}n {monat}"
        weekday, wochentag = self.one(WEEKDAYS)
        return f"on {weekday} the {day} of {month}", f"am {wochentag} dem {tag}n {monat}"

    def one(self, choices: list[T]) -> T:
        return choices[self.rng.randint(len(choices))]

    def word(self, words: list[T]) -> T:
        """As in any text the k-th word of a list comes with probability proportional to 1 / k."""
        shares = 1.0 / np.arange(1, len(words) + 1)
        return words[self.rng.choice(len(words), p=shares / shares.sum())]

    def synonym(self, words: list[T]) -> T:
        return words[-1] if self.rng.rand() < self.synonym_share else words[0]


def _form(forms: tuple[str, str, str], person: str) -> str:
    return forms[("1", "3", "pl").index(person)]
