"""What a language does to a word: articles and their contractions, numbers, dates, typography.

In: the value of a slot, as plain Python (a noun and its gender, an int, a date), and a form. Out:
its text in English, French, German or Spanish.

The one idea: a grammatical form is a row of a table; French "de" before a masculine noun is "du"
because ARTICLES["fr"]["de"]["m"] says so.
"""

import re
from datetime import date, time

LANGUAGES = ("en", "fr", "de", "es")

NO_BREAK, NARROW = "\u00a0", "\u202f"

# language -> form -> column -> what stands before the word. Columns: the noun's gender m, f, n;
# "v", a French noun that begins with a vowel; "name" and "name v", a person or a town.
# Form "" is the definite article as the subject of a sentence. English sentences write their own.
ARTICLES = {
    "fr": {
        "": {"m": "le ", "f": "la ", "v": "l'"},
        "de": {"m": "du ", "f": "de la ", "v": "de l'", "name": "de ", "name v": "d'"},
        "a": {"m": "au ", "f": "à la ", "v": "à l'", "name": "à ", "name v": "à "},
        "que": {"name": "que ", "name v": "qu'"},
    },
    "de": {
        "": {"m": "der ", "f": "die ", "n": "das "},
        "acc": {"m": "den ", "f": "die ", "n": "das "},
        "dat": {"m": "dem ", "f": "der ", "n": "dem "},
        "in": {"m": "im ", "f": "in der ", "n": "im "},
    },
    "es": {
        "": {"m": "el ", "f": "la "},
        "de": {"m": "del ", "f": "de la "},
        "a": {"m": "al ", "f": "a la "},
    },
}
INDEFINITE = {"fr": {"m": "un ", "f": "une "}, "es": {"m": "un ", "f": "una "}}

MONTHS = {
    "en": "January February March April May June July August September October November December",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "es": "enero febrero marzo abril mayo junio "
    "julio agosto septiembre octubre noviembre diciembre",
}
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "es": "lunes martes miércoles jueves viernes sábado domingo",
}
# Two to twelve; none of them changes with gender in any of the four languages.
COUNTS = {
    "en": "two three four five six seven eight nine ten eleven twelve",
    "fr": "deux trois quatre cinq six sept huit neuf dix onze douze",
    "de": "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "es": "dos tres cuatro cinco seis siete ocho nueve diez once doce",
}
THOUSANDS = {"en": ",", "fr": NARROW, "de": ".", "es": NARROW}


def _column(language: str, word: str, gender: str) -> str:
    """The column of ARTICLES for this word; `gender` is m, f, n or "name".

    A French h counts as mute: the phrase tables hold no word with an aspirated one.
    """
    if language == "fr" and word[0].lower() in "aàâeéèêiîoôuhyœ":
        return "name v" if gender == "name" else "v"
    return gender


def noun(language: str, word: str, gender: str, form: str) -> str:
    """A noun or name in a form of ARTICLES, or form "bare" (alone) or "un" (indefinite)."""
    if form == "bare":
        return word
    if form == "un":
        return INDEFINITE[language][gender] + word
    return ARTICLES[language][form][_column(language, word, gender)] + word


def integer(language: str, value: int) -> str:
    """1,240 / 1 240 / 1.240 / 1240: Spanish groups digits only from five on."""
    if language == "es" and value < 10_000:
        return str(value)
    return f"{value:,}".replace(",", THOUSANDS[language])


def decimal(language: str, tenths: int) -> str:
    """A number given in tenths: 12.5 in English, 12,5 elsewhere."""
    whole, rest = divmod(tenths, 10)
    return f"{integer(language, whole)}{'.' if language == 'en' else ','}{rest}"


def count(language: str, value: int) -> str:
    """Two to twelve in words."""
    return COUNTS[language].split()[value - 2]


def day(language: str, when: date, form: str) -> str:
    """A date: "" with its year, "short" without, "week" with the weekday and without the year."""
    month, weekday = MONTHS[language].split()[when.month - 1], WEEKDAYS[language].split()
    number = {"fr": "1er" if when.day == 1 else str(when.day), "de": f"{when.day}."}
    joined = f"{number.get(language, when.day)}{' de ' if language == 'es' else ' '}{month}"
    if form == "short":
        return joined
    if form == "week":
        comma = ", dem " if language == "de" else " "
        return weekday[when.weekday()] + comma + joined
    if form == "":
        return f"{joined}{' de ' if language == 'es' else ' '}{when.year}"
    raise KeyError(form)


def clock(language: str, when: time) -> str:
    """18:40, 18 h 40 in French, 18.40 Uhr in German."""
    if language == "fr":
        minutes = f"{NO_BREAK}{when.minute:02d}" if when.minute else ""
        return f"{when.hour}{NO_BREAK}h{minutes}"
    if language == "de":
        return f"{when.hour}{f'.{when.minute:02d}' if when.minute else ''}{NO_BREAK}Uhr"
    return f"{when.hour}:{when.minute:02d}"


def typeset(language: str, text: str) -> str:
    """Curly apostrophes everywhere; French no-break spaces at its two-part punctuation."""
    text = text.replace("'", "’")
    if language == "fr":
        text = re.sub(r" ([;!?])", NARROW + r"\1", text)
        text = re.sub(r" ([:»%])", NO_BREAK + r"\1", text).replace("« ", "«" + NO_BREAK)
    return text
