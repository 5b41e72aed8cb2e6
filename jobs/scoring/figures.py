"""Quality metrics with exact definitions: confidence intervals, distances and similarities of embeddings, captions.

Shape suffixes: N items, D embedding width.
"""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
_Z95 = 1.959963984540054  # the normal distribution's quantile at 97.5 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `count` trials (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    The variance of a mean of values between 0 and 1 is at most that of such a share, so the interval is conservative
    for it. Raises ValueError without trials, or for a share outside of 0 to 1.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share of {share} of {count} trials; give one from 0 to 1, of at least one")
    squared = _Z95**2
    middle = share + squared / (2 * count)
    half = _Z95 * np.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    scale = 1 + squared / count
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def frechet_distance(first_ND: Floats, second_ND: Floats) -> float:
    """The squared Frechet distance of the Gaussians fitted to two sets of embeddings.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), with means m and unbiased covariances C (Heusel et al. 2017,
    arXiv:1706.08500, eq. 6). Values of different encoders are not comparable, and the estimate is biased upwards
    for few items, most of all for fewer than D. Raises ValueError for sets of fewer than two.
    """
    if min(len(first_ND), len(second_ND)) < 2:
        raise ValueError("the Frechet distance needs at least two items on each side; score more of them")
    first_ND, second_ND = first_ND.astype(np.float64), second_ND.astype(np.float64)
    apart_D = first_ND.mean(axis=0) - second_ND.mean(axis=0)
    first_DD, second_DD = np.atleast_2d(np.cov(first_ND, rowvar=False)), np.atleast_2d(np.cov(second_ND, rowvar=False))
    # C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2).
    values_D, vectors_DD = np.linalg.eigh(first_DD)
    root_DD = (vectors_DD * np.sqrt(values_D.clip(min=0))) @ vectors_DD.T
    shared = np.sqrt(np.linalg.eigvalsh(root_DD @ second_DD @ root_DD).clip(min=0)).sum()
    return max(0.0, float(apart_D @ apart_D + np.trace(first_DD) + np.trace(second_DD) - 2 * shared))


def cosine_similarities(first_ND: Floats, second_ND: Floats) -> npt.NDArray[np.float64]:
    """The cosine similarity of each row of one set with the same row of the other (N,).

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718) is 2.5 times the cosine of a medium and its caption, clipped at 0;
    here it is neither scaled nor clipped.
    """
    norms_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    return np.einsum("nd,nd->n", first_ND, second_ND, dtype=np.float64) / np.maximum(norms_N, 1e-12)


def caption_scores(texts: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Corpus scores from 0 to 1 of texts against one or several references each.

    * `bleu_4`: corpus BLEU up to 4-grams (Papineni et al. 2002), as SacreBLEU (Post 2018, arXiv:1804.08771) computes it
      by default: 13a tokens, case-sensitive, exponential smoothing;
    * `chrf`: character n-grams up to 6, beta 2, no words (Popovic 2015), by SacreBLEU;
    * `rouge_l`: the mean F1 of the longest common subsequences of lower-case words (Lin 2004) with the nearest of the
      references, by rouge-score, without stemming.

    Raises ValueError without texts.
    """
    from rouge_score.rouge_scorer import RougeScorer  # late: few runs need it
    from sacrebleu import corpus_bleu, corpus_chrf

    if not texts:
        raise ValueError("no texts to score; give at least one")
    rouge, several = RougeScorer(["rougeL"]), [[one] if isinstance(one, str) else list(one) for one in references]
    longest = [rouge.score_multi(given, text)["rougeL"].fmeasure for text, given in zip(texts, several, strict=True)]
    # As SacreBLEU takes them: the first reference of each text, the second, ...; None where a text has fewer.
    streams = list(map(list, zip_longest(*several)))
    return {
        "bleu_4": corpus_bleu(list(texts), streams).score / 100,
        "chrf": corpus_chrf(list(texts), streams).score / 100,
        "rouge_l": float(np.mean(longest)),
    }
