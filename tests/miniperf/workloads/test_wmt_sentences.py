"""The sentences of mini_wmt, in both languages."""

import numpy as np
import pytest

from miniperf.workloads.wmt import sentences


@pytest.mark.parametrize(
    ("hour", "minute", "english", "german"),
    [
        (1, 0, "one o'clock", "ein Uhr"),
        (12, 0, "twelve o'clock", "zwölf Uhr"),
        (5, 15, "a quarter past five", "Viertel nach fünf"),
        (12, 30, "half past twelve", "halb eins"),
        (12, 45, "a quarter to one", "Viertel vor eins"),
    ],
)
def test_the_clock(hour, minute, english, german):
    assert sentences.clock(hour, minute) == (english, german)


def test_numbers():
    assert sentences.cardinal(1234) == (
        "one thousand two hundred and thirty-four",
        "eintausendzweihundertvierunddreißig",
    )
    assert sentences.year(1984) == ("nineteen eighty-four", "neunzehnhundertvierundachtzig")
    assert sentences.year(2005) == ("two thousand and five", "zweitausendfünf")
    assert sentences.ordinal(3) == ("third", "dritte")
    assert sentences.ordinal(21) == ("twenty-first", "einundzwanzigste")


def test_the_three_orders_of_a_german_clause():
    train = sentences.Clause("", "", "der Zug", "fährt", "um drei Uhr", "von Gleis zwei", "ab")
    assert train.main() == "der Zug fährt um drei Uhr von Gleis zwei ab"
    assert train.inverted() == "um drei Uhr fährt der Zug von Gleis zwei ab"
    assert train.subordinate() == "der Zug um drei Uhr von Gleis zwei abfährt"
    past = sentences.Clause("", "", "er", "hat", "am Montag", "zwei Bücher", "gekauft")
    assert past.main() == "er hat am Montag zwei Bücher gekauft"
    assert past.inverted() == "am Montag hat er zwei Bücher gekauft"
    assert past.subordinate() == "er am Montag zwei Bücher gekauft hat"


def test_some_sentences_checked_by_hand_and_rules_that_hold_for_all():
    grammar = sentences.Grammar(np.random.RandomState(5), 0.3)
    pairs = dict(grammar.sentence() for _ in range(3000))
    checked = {
        "on sunday the thirty-first of august i bought eleven old knives": (
            "am Sonntag dem einunddreißigsten August habe ich elf alte Messer gekauft"
        ),
        "in twenty twenty-two we packed eight old bread knives": (
            "zweitausendzweiundzwanzig haben wir acht betagte Brotmesser eingepackt"
        ),
        "it is good that she bought six old cups on the sixteenth of february": (
            "gut ist dass sie am sechzehnten Februar sechs alte Tassen gekauft hat"
        ),
        "i believe that the train from warsaw arrives on platform eight at half past one": (
            "ich meine dass der Zug aus Warschau um halb zwei auf Gleis acht ankommt"
        ),
        "at eight o'clock i will forget twelve books": "um acht Uhr werde ich zwölf Bücher vergessen",
        "the old house costs thirty-six euros": "das alte Gebäude kostet sechsunddreißig Euro",
        "the fourth room on the third floor is old": "das vierte Zimmer im dritten Stock ist alt",
    }
    assert {english: pairs[english] for english in checked} == checked
    starts = {
        "i will ": "ich werde ",
        "he wants to ": "er will ",
        "we should ": "wir sollen ",
        "they can ": "sie können ",
    }
    for english, german in pairs.items():
        for start, anfang in starts.items():
            assert german.startswith(anfang) or not english.startswith(start)
        if " that the train " in english:
            assert german.endswith(("abfährt", "ankommt"))
        if english.startswith("on ") and " of may " in english:
            assert german.startswith("am ")
            assert "ten Mai " in german
