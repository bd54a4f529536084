"""Pronouns are nobody's name, in the languages that people write; names that look like one stay names."""

from __future__ import annotations

import pytest

from observer.turns.pronouns import is_nobodys_name, is_user

PRONOUNS = [
    ("He", "Karl is my boss. He lives in Rome."),
    ("she", "she is at Bosch"),
    ("them", "I met them"),
    ("it", "I like it"),
    ("HE", "HE LIVES IN ROME"),
    ("HE", "Karl is my boss. He lives in Rome."),
    ("He.", "He. Lives in Rome."),
    ("My Wife", "My wife lives in Rome"),
    ("MY WIFE", "My wife lives in Rome"),
    ("he and his wife", "he and his wife live in Rome"),
    ("you", "you live in Rome"),
    ("Someone", "Someone lives there"),
    ("It's", "It's in Rome"),
    ("Er", "Karl ist mein Chef. Er mag Tee."),
    ("Sie", "Sie arbeitet bei Bosch"),
    ("Il", "Il habite à Lyon"),
    ("Elle", "Elle travaille chez Renault"),
    ("Él", "Él vive en Roma"),
    ("Ella", "Ella vive en Roma"),
    ("Ele", "Ele mora em Lisboa"),
    ("Lui", "Lui vive a Roma"),
    ("Hij", "Hij woont in Rome"),
    ("Han", "Han bor i Lund"),
    ("On", "On mieszka w Rzymie"),
    ("O", "O Ankara'da yaşıyor"),
    ("Он", "Он живёт в Турку"),
    ("彼", "彼はローマに住んでいます"),
    ("他", "他住在罗马"),
    ("그", "그는 로마에 산다"),
    ("my wife", "My wife lives in Rome"),
    ("His brother", "His brother lives in Rome"),
    ("Meine Frau", "Meine Frau wohnt in Rom"),
    ("ma femme", "Ma femme habite à Lyon"),
    ("mi esposa", "Mi esposa vive en Roma"),
    ("моя жена", "моя жена живёт в Риме"),
    ("我的妻子", "我的妻子住在罗马"),
    ("私の妻", "私の妻はローマに住んでいます"),
]
NAMES = [
    ("Ella", "My sister Ella lives in Rome"),
    ("Ben", "Ben arbeitet bei Siemens"),
    ("Ben", "Ben works at Siemens"),
    ("Han", "I met Han at work"),
    ("Kim", "Kim works at Bosch"),
    ("Min", "Min is my friend from Seoul"),
    ("My", "My bor i Lund"),
    ("Mi", "Mi lives in Hanoi"),
    ("On", "I run in shoes from On"),
    ("IT", "He works in IT"),
    ("US", "They live in the US"),
    ("He Jiankui", "He Jiankui lives in China"),
    ("My Little Pony", "I watch My Little Pony"),
    ("he/him", "My pronouns are he/him"),
    ("Emil and his wife", "Emil and his wife live in Rome"),
    ("wife", "My wife lives in Rome"),
    ("Emil", "My brother Emil called."),
    ("mine", "I worked in a mine near Rustenburg"),
    ("Ella", ""),
]


@pytest.mark.parametrize(("name", "text"), PRONOUNS)
def test_a_pronoun_is_nobodys_name(name: str, text: str) -> None:
    assert is_nobodys_name(name, text)
    assert not is_user(name, text)


@pytest.mark.parametrize(("name", "text"), NAMES)
def test_a_name_that_is_a_pronoun_elsewhere_is_a_name(name: str, text: str) -> None:
    assert not is_nobodys_name(name, text)
    assert not is_user(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [("I", "I live in Rome"), ("me", "tell me"), ("my", "my cat"), ("user", "hello"), ("The user", "hello"),
     ("I'm", "I'm at Bosch"), ("ich", "Ich wohne in Rom"), ("Je", "Je vis à Lyon"), ("Yo", "Yo vivo en Roma"),
     ("Eu", "Eu moro em Lisboa"), ("Io", "Io vivo a Roma"), ("Ik", "Ik woon in Rome"),
     ("Ja", "Ja mieszkam w Rzymie"),
     ("Jag", "Jag bor i Lund"), ("Ben", "Ben Ankara'da yaşıyorum"), ("я", "я живу"),
     ("私", "私は"),
     ("我", "我住在罗马")],
)  # fmt: skip
def test_the_first_person_is_the_user(name: str, text: str) -> None:
    assert is_user(name, text)
