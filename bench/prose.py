"""Texts to draw: deterministic prose, in which frequent words come often."""

import random

WORDS = (
    "the of and to in a is that for it was as with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also "
    "did many before must through years where much way well down should because each just those "
    "people how "
    "too little state good very make world still see own work men long get here between both life "
    "being under never day same another know while last might us great old year off come since "
    "against go came right used take three government system general national important different "
    "development information international university experience particular understanding question"
).split()


def documents(count: int) -> list[str]:
    """Deterministic prose; frequent words come early in WORDS."""
    chance, out = random.Random(7), []
    for _ in range(count):
        text, target = "", chance.randint(2000, 14000)
        while len(text) < target:
            words = [
                WORDS[min(int(chance.expovariate(1 / 45)), len(WORDS) - 1)]
                for _ in range(chance.randint(6, 26))
            ]
            if chance.random() < 0.3:
                words[chance.randrange(len(words))] = str(chance.randint(2, 2026))
            sentence = " ".join(words).replace(" which", ", which").capitalize()
            text += sentence + chance.choice("....?;") + ("\n\n" if chance.random() < 0.1 else " ")
        out.append(text)
    return out
