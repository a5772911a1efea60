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
        (5, 20, "twenty past five", "zwanzig nach fünf"),
        (5, 25, "twenty-five past five", "fünf vor halb sechs"),
        (12, 30, "half past twelve", "halb eins"),
        (5, 35, "twenty-five to six", "fünf nach halb sechs"),
        (12, 45, "a quarter to one", "Viertel vor eins"),
        (1, 5, "five past one", "fünf nach eins"),
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
    assert sentences.money(1250) == ("twelve euro fifty cents", "zwölf Euro und fünfzig Cent")


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
    grammar = sentences.Grammar(np.random.RandomState(5))
    pairs = dict(grammar.sentence() for _ in range(3000))
    checked = {
        "two friends picked up nine cheap books on thursday the thirty-first of december": (
            "zwei Freunde haben am Donnerstag dem einunddreißigsten Dezember neun billige Bücher abgeholt"
        ),
        "we know that i can bring ten old glasses at ten past six": (
            "wir wissen dass ich um zehn nach sechs zehn alte Gläser bringen kann"
        ),
        "i believe that the train from cologne arrives on platform eleven at five to five": (
            "ich glaube dass der Zug aus Köln um fünf vor fünf auf Gleis elf ankommt"
        ),
        "on tuesday the twenty-eighth of october he bought thirty-three new books": (
            "am Dienstag dem achtundzwanzigsten Oktober hat er dreiunddreißig neue Bücher erworben"
        ),
        "the old letter box costs eleven euro fourteen cents": "der alte Briefkasten kostet elf Euro und vierzehn Cent",
        "the eighth door on the twelfth floor is old": "die achte Tür im zwölften Stock ist alt",
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
