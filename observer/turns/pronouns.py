"""Words that stand for somebody and are nobody's name: `I` is the user, `he` and `my wife` whoever was meant last.

A word counts as a pronoun of a language where the text around it may be of that language: `Ben` is I in Turkish, `Ella`
she in Spanish, and both are names in English.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, lru_cache

from observer.schema import USER

_WORDS = """
en first      i me my myself
de first      ich mich mir mein meine meinen meinem meiner meines
fr first      je j' moi me mon ma mes
es first      yo me mí mi mis conmigo
pt first      eu me mim meu minha comigo
it first      io me mi mio mia miei mie
nl first      ik me mij mijn
pl first      ja mnie mi mną mój moja moje
sv first      jag mig min mitt mina
da first      jeg mig min mit mine
tr first      ben bana beni benim bende
ru first      я меня мне мной мой моя моё мои
uk first      я мене мені мною мій моя моє мої
ja first      私 わたし 僕 ぼく 俺 おれ
zh first      我 本人
ko first      나 저 내 제 나는 저는 내가 제가
en other      he him his himself she her hers herself they them their theirs themself themselves it its itself
en other      we us our ours ourselves you your yours yourself yourselves this that these those someone somebody
en other      everyone everybody anyone anybody nobody who whom
de other      er ihn ihm sein seine sie ihr ihre ihnen es wir uns unser unsere du dich dir dein deine euch euer
de other      man jemand niemand dieser diese wer
fr other      il elle lui le la ils elles eux leur leurs on nous notre nos vous votre vos tu te toi ton ta tes
fr other      son sa ses ça cela celui celle quelqu'un personne qui
es other      él el ella ello ellos ellas le les lo la nosotros nosotras nos nuestro nuestra tú tu ti usted
es other      ustedes vosotros su sus alguien nadie esto eso quien
pt other      ele ela eles elas lhe lhes nós nos nosso nossa você vocês tu te ti teu tua seu sua dele dela
pt other      alguém ninguém isso isto quem
it other      lui lei egli ella esso essa loro gli le noi ci nostro nostra voi vi vostro tu te ti tuo tua suo
it other      sua suoi sue qualcuno nessuno questo quello chi
nl other      hij hem zijn zij ze haar hen hun het wij we ons onze jij je jou jouw u uw jullie iemand niemand
nl other      dit dat wie
pl other      on ona ono oni one jego jej jemu ich im nim nią niego niej my nas nam nasz ty ciebie ci twój wy
pl other      was wam ktoś nikt kto
sv other      han honom hans hon henne hennes de dem deras den det vi oss vår ni er du dig din någon ingen vem
da other      han ham hans hun hende hendes de dem deres den det vi os vores i jer du dig din nogen ingen hvem
tr other      o onu ona onun onlar onları biz bizi bize bizim siz sizi sizin sen seni sana senin biri kimse kim
ru other      он его ему нём ним она её ей ею ней оно они их им ими них мы нас нам нами наш наша ты тебя тебе
ru other      твой вы вас вам ваш кто кто-то никто это свой
uk other      він його йому ним вона її їй нею воно вони їх їм ними ми нас нам наш ти тебе тобі твій ви вас вам
uk other      ваш хтось ніхто хто це
ja other      彼 彼女 彼ら 彼女ら かれ かのじょ あなた 君 私たち 僕たち これ それ あれ 誰
zh other      他 她 它 他们 她们 它们 他們 她們 你 您 你们 你們 我们 我們 咱们 自己 这 那 谁
ko other      그 그녀 그는 그녀는 그가 그녀가 그들 너 당신 우리 저희 이것 그것 누구
en possessive my your his her its our their
de possessive mein meine meinen meinem meiner dein deine sein seine seinen seiner ihr ihre ihren ihrer unser
de possessive unsere euer eure
fr possessive mon ma mes ton ta tes son sa ses notre nos votre vos leur leurs
es possessive mi mis tu tus su sus nuestro nuestra
pt possessive meu minha teu tua seu sua nosso nossa
it possessive mio mia tuo tua suo sua nostro nostra vostro vostra loro
nl possessive mijn jouw je zijn haar onze ons hun uw
pl possessive mój moja moje twój twoja jego jej nasz nasza ich
sv possessive min mitt mina din ditt hans hennes vår vårt deras
da possessive min mit mine din hans hendes vores deres
tr possessive benim senin onun bizim sizin onların
ru possessive мой моя моё мои моего моей твой твоя его её наш наша ваш ваша их свой своя
uk possessive мій моя моє мої твій твоя його її наш наша ваш ваша їх свій своя
en often      the and is in at of to with for has lives works was from named called who likes met like live work
en often      have am are
de often      der die das und ist nicht mit bei ein eine wohnt lebt arbeitet hat zu von seit im aus heißt mag
de often      wohne lebe
fr often      les et est dans un une des chez habite travaille avec depuis que du vit aime s'appelle suis vis à
es often      los es en un una con que vive trabaja tiene está por para se llama vivo trabajo soy y
pt often      os em um uma com que mora vive trabalha tem no na do da se chama moro trabalho sou é
it often      il in un una con che vive lavora ha nel abita si chiama vivo abito lavoro sono è
nl often      het en is in een van met woont werkt heeft bij op heet woon werk
pl often      jest na nie mieszka pracuje się do ma nazywa mieszkam pracuję w z
sv often      och är en ett med bor jobbar har på det som heter arbetar
da often      og er en et med bor arbejder har på det som hedder
tr often      ve bir bu yaşıyor çalışıyor oturuyor için çok ile adı yaşıyorum çalışıyorum
tr often      oturuyorum
"""
"""Language, kind and words. `first` is the speaker with what is the speaker's own; `often` tells a text's language."""
_POSSESSIVE_STARTS = re.compile(
    "(?:我|你|他|她|我们|他们)的|(?:私|僕|俺|彼|彼女|あなた)の|(?:내|제|나의|우리|그의|그녀의) "
)
_NAMES_TOO = frozenset(
    """
    ali ben biz ci de den di din do egli el ela ella elle er es gli han hon hun i im io ja kim kto la le lei li lo
    lui ma man mi min mina mitt moi mon ni noi o on ona one oni ono os sa sen sie son ta te ti toi tu ty u vi yo ze
    """.split()
)
"""Pronouns of one language that are somebody's name, or something's, in another."""
_SPEAKER = frozenset({"user", "the user"})
_JOINED = re.compile(r"\s+(?:and|or|&)\s+")
_CONTRACTED = re.compile(r"(?i)['’](?:m|s|re|ve|d|ll)$")


def is_user(name: str, text: str = "") -> bool:
    """Whether the name stands for the user: `I`, `me`, `user`, `ich`. `text` is what it was said in."""
    return name.strip().casefold() in _SPEAKER or _is_one_of("first", name, text)


def is_nobodys_name(name: str, text: str = "") -> bool:
    """Whether the name is a pronoun, or a possessive one with a noun (`my wife`); `User` is none."""
    if name == USER:
        return False
    name = name.strip(" .,;:!?'\"")
    parts = _JOINED.split(name)
    if len(parts) > 1 and all(part and is_nobodys_name(part, text) for part in parts):
        return True
    if _is_one_of("first", name, text) or _is_one_of("other", name, text):
        return True
    first, _, noun = name.strip().partition(" ")
    if _POSSESSIVE_STARTS.match(name) or first.casefold() in ("user's", "user’s"):
        return True
    is_title = noun == noun.title() and _is_so_in(noun, text) and first.casefold() not in _table()["possessive"]["de"]
    if not noun or is_title:
        return False  # `My Little Pony`
    return _is_one_of("possessive", first, text)


def _is_one_of(kind: str, name: str, text: str) -> bool:
    """Whether it is one of a language that the text may be of; where no other word tells, of any."""
    word = _CONTRACTED.sub("", name.strip())
    is_upper = len(word) > 1 and word.isupper() and word.casefold() != word
    if is_upper and any(map(str.islower, text or "a")) and _is_so_in(word, text):
        return False  # `IT`, `US`
    word = word.casefold()
    languages = {language for language, words in _table()[kind].items() if word in words}
    if not languages & _table()["often"].keys():
        return bool(languages)
    likely = _languages(text, word)
    return bool(languages & likely) if likely else word not in _NAMES_TOO or languages == {"en"}


def _is_so_in(word: str, text: str) -> bool:
    """Whether the text has the word in these letters, or not at all."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)) or word.casefold() not in text.casefold()


@lru_cache(maxsize=256)
def _languages(text: str, name: str) -> frozenset[str]:
    """What the text is most likely written in, the name left aside; none where no word tells."""
    words = [word for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold()) if word != name]
    scores = {language: sum(word in known for word in words) for language, known in _known_words().items()}
    best = max(scores.values())
    return frozenset(language for language, score in scores.items() if score == best) if best else frozenset()


@cache
def _table() -> dict[str, dict[str, frozenset[str]]]:
    """Kind -> language -> words."""
    table: dict[str, dict[str, frozenset[str]]] = defaultdict(lambda: defaultdict(frozenset))
    for line in _WORDS.split("\n")[1:-1]:
        language, kind, *words = line.split()
        table[kind][language] |= frozenset(words)
    return table


@cache
def _known_words() -> dict[str, frozenset[str]]:
    """Words of two letters or more of each language whose texts can be told apart."""
    every = {language: [table[language] for table in _table().values()] for language in _table()["often"]}
    return {
        language: frozenset(word for words in tables for word in words if len(word) > 1)
        for language, tables in every.items()
    }
