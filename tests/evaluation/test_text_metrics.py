"""Text metrics against the packages that others use, and against slow references."""

import math
import random
from statistics import mean

import jiwer
import pytest

from deepsynth_min.evaluation import text_metrics as M
from deepsynth_min.evaluation.figures import answer_figures

ASCII = "abcde fgh 012 .,-A"
UNICODE = "aé ß 文字Ω\u0301ы\U0001f600 \u200d.ñ9"


def pairs(alphabet: str, number: int = 200) -> list[tuple[str, str]]:
    """Random texts and answers that share a part with them."""
    chance, found = random.Random(0), []
    for _ in range(number):
        a = "".join(chance.choices(alphabet, k=chance.randint(1, 90)))
        b = list(a)
        for _ in range(chance.randint(0, 40)):
            at = chance.randint(0, len(b))
            b[at : at + chance.randint(0, 3)] = chance.choices(alphabet, k=chance.randint(0, 3))
        found.append((a, "".join(b)))
    return found


@pytest.mark.parametrize("alphabet", [ASCII, UNICODE])
def test_the_character_error_rate_is_jiwers_on_200_random_pairs(alphabet):
    for reference, answer in pairs(alphabet):
        if reference.strip():  # jiwer refuses an empty reference
            expected = jiwer.cer(reference, answer)
            assert M.character_error_rate(reference, answer) == pytest.approx(expected, abs=1e-12)


def slow_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_the_edit_distance_is_that_of_the_full_table_and_symmetric():
    edge = [("", ""), ("", "abc"), ("abc", ""), ("a" * 130, "b" * 130), ("ab" * 70, "ba" * 65)]
    for a, b in [*pairs(ASCII, 50), *pairs(UNICODE, 50), *edge]:
        assert M.edit_distance(a, b) == M.edit_distance(b, a) == slow_distance(a, b)


@pytest.mark.parametrize("alphabet", [ASCII, UNICODE])
def test_an_alignment_gives_both_texts_and_marks_as_many_edits_as_are_counted(alphabet):
    edge = [("", ""), ("", "abc"), ("abc", ""), ("abc", "abc"), ("a" * 70, "b" * 130)]
    for a, b in [*pairs(alphabet), *edge]:
        pieces = M.alignment(a, b)
        assert "".join(x for _, x, _ in pieces) == a and "".join(y for *_, y in pieces) == b
        assert all((x == y) == equal for equal, x, y in pieces)
        assert all(one[0] != two[0] for one, two in zip(pieces, pieces[1:]))
        edits = sum(max(len(x), len(y)) for equal, x, y in pieces if not equal)
        assert edits == M.edit_distance(a, b)


def test_rates_over_all_answers_are_jiwers_of_lists():
    chosen = [(a, b) for a, b in pairs(ASCII) if a.strip()]
    references, answers = zip(*chosen)
    table = {name: [] for name in ("cer", "edits", "characters", "word_edits", "words")}
    for reference, answer in chosen:
        found = *M.character_edits(reference, answer), *M.word_edits(reference, answer)
        for name, value in zip(table, (found[0] / found[1], *found)):
            table[name].append(value)
    result = answer_figures(table)
    assert result["cer_corpus"] == pytest.approx(jiwer.cer(list(references), list(answers)))
    assert result["wer_corpus"] == pytest.approx(jiwer.wer(list(references), list(answers)))
    assert result["cer"] == pytest.approx(mean(jiwer.cer(a, b) for a, b in chosen))
    assert abs(result["cer"] - result["cer_corpus"]) > 0.01  # two figures, not one


def binomial_quantile(count: int, chance: float, share: float) -> int:
    """The least k such that at most k successes have a probability of `share` or more."""
    total = 0.0
    for k in range(count + 1):
        total += math.comb(count, k) * chance**k * (1 - chance) ** (count - k)
        if total >= share:
            return k
    raise AssertionError


def test_the_bootstrap_interval_is_that_of_theory_where_there_is_one():
    """Means of resampled zeros and ones are binomial."""
    for ones, count in ((30, 100), (5, 8), (200, 400)):
        low, high = M.bootstrap_interval([1.0] * ones + [0.0] * (count - ones))
        expected = [
            binomial_quantile(count, ones / count, share) / count for share in (0.025, 0.975)
        ]
        assert (low, high) == pytest.approx(expected, abs=0.011)
    assert M.bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    values = [0.1, 0.9, 0.4]
    assert M.bootstrap_interval(values) == M.bootstrap_interval(values)


def test_in_ascii_rouge_is_the_packages_own_on_200_random_pairs():
    package = pytest.importorskip("rouge_score.rouge_scorer", reason="only a peer to compare with")
    theirs = package.RougeScorer(list(M.ROUGE))
    edge = [("", ""), ("", "a"), ("a", ""), ("a", "a"), ("a b", "b a"), ("...", "a b a b")]
    for reference, answer in [*pairs(ASCII), *edge, ("ab c " * 90, "c ab " * 70)]:
        expected = [theirs.score(reference, answer)[name].fmeasure for name in M.ROUGE]
        assert M.rouge(reference, answer) == expected


def slow_rouge(reference: list[str], answer: list[str], n: int) -> float:
    """F1 of the n-grams in common, each counted as often as it is in both; n = 0: longest common
    subsequence."""
    if n:
        a, b = ([tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in (reference, answer))
        rest, common = list(b), 0
        for gram in a:
            if gram in rest:
                rest.remove(gram)
                common += 1
    else:
        a, b, table = reference, answer, [0] * (len(answer) + 1)
        for x in a:
            before = 0
            for j, y in enumerate(b, 1):
                before, table[j] = table[j], before + 1 if x == y else max(table[j], table[j - 1])
        common = table[-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def test_with_unicode_rouge_counts_words_of_every_script_on_200_random_pairs():
    for reference, answer in pairs(UNICODE):
        words = [M.words_of(text) for text in (reference, answer)]
        expected = [slow_rouge(*words, n) for n in (1, 2, 0)]
        assert M.rouge(reference, answer) == pytest.approx(expected, abs=1e-12)
    assert M.words_of("Ünïcode_x 文字 Привет") == ["ünïcode", "x", "文", "字", "привет"]
    assert M.rouge("文字を読む", "文字を読む") == [1.0, 1.0, 1.0]


def test_repetition_is_the_share_of_runs_seen_before():
    assert M.repetition([1, 2, 3]) == 0.0 and M.repetition(list(range(50))) == 0.0
    assert M.repetition([7] * 13) == pytest.approx(0.9)  # ten runs, nine of them seen before
    assert M.repetition([1, 2, 3, 4, 5, 1, 2, 3, 4]) == pytest.approx(1 / 6)


def test_the_word_error_rate_is_jiwers_and_normalising_leaves_case_and_punctuation_out():
    pairs = [
        ("a b c", "a c"),
        ("The mill, it ran.", "the mill it ran"),
        ("x", ""),
        ("a  b", "b a c"),
    ]
    for reference, answer in pairs:
        assert M.rate(*M.word_edits(reference, answer)) == pytest.approx(
            jiwer.wer(reference, answer)
        )
    assert M.normalised_error_rate("The  Mill, it ran!", "the mill it ran") == 0
    assert M.normalised_error_rate("ﬁne Ａ", "fine a") == 0  # a ligature and a wide letter
    assert M.normalised_error_rate("abcd", "abce") == 0.25
