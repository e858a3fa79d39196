"""Learn the word vectors of the router from a folder of plain texts.

    python benchmarks/router/vectors.py FOLDER

Every `*.txt` below FOLDER is read, one paragraph per line. The vectors that ship were learnt from
6.7 million words of public documentation (model serving, tracking, pipelines, drift, training
frameworks, language models, web frameworks, clusters; prose only) and from the utterances of the
corpus that are not held back. Only counts of words near each other leave the texts.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from fairlead.router import meaning
from fairlead.router.corpus import load_corpus
from fairlead.router.text import tokens_of

TARGET = Path(meaning.__file__).parent / "data" / "vectors.npz"
WINDOW = 6
SMOOTHING = 0.75
"""Exponent of the context counts, so that rare contexts are not overrated."""
MIN_COUNT = 12
MIN_COUNT_CORPUS = 3
MAX_WORDS = 25_000
COMMON = 50
"""Added to a word's count before its weight is taken, so that typos do not outweigh words."""


def paragraphs(folder: Path) -> Iterator[list[str]]:
    """Return the stems of each paragraph, numbers left out."""
    for path in sorted(folder.rglob("*.txt")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield _stems(line)


def _stems(text: str) -> list[str]:
    return [word for word in tokens_of(text) if not word.isdecimal() and "\n" not in word]


def vocabulary(texts: list[list[str]], own: list[list[str]]) -> Counter[str]:
    """Return the words that are kept with how often they occur, the most frequent first."""
    counts = Counter(word for text in texts for word in text)
    in_own = Counter(word for text in own for word in set(text))
    total = counts + Counter(word for text in own for word in text)
    kept = {
        word: count
        for word, count in total.most_common()
        if count >= MIN_COUNT or in_own[word] >= MIN_COUNT_CORPUS
    }
    return Counter(dict(list(kept.items())[:MAX_WORDS]))


def cooccurrence(texts: list[list[str]], places: dict[str, int]) -> sp.csr_matrix:
    """Return how often words stand near each other, weighted by 1 / distance."""
    size = len(places)
    found = sp.csr_matrix((size, size), dtype=np.float32)
    for at in range(0, len(texts), 50_000):
        firsts, seconds, values = [], [], []
        for text in texts[at : at + 50_000]:
            ids = np.array([places.get(word, -1) for word in text], dtype=np.int32)
            for distance in range(1, min(WINDOW + 1, len(ids))):
                one, other = ids[:-distance], ids[distance:]
                known = (one >= 0) & (other >= 0)
                firsts.append(one[known])
                seconds.append(other[known])
                values.append(np.full(int(known.sum()), 1 / distance, np.float32))
        places_of = (np.concatenate(firsts), np.concatenate(seconds))
        found = found + sp.csr_matrix((np.concatenate(values), places_of), (size, size))
    return (found + found.T).tocsr()


def factorised(near: sp.csr_matrix) -> np.ndarray:
    """Return one vector of length 1 per word from positive pointwise mutual information."""
    cells = near.tocoo()
    seen = np.asarray(near.sum(1)).ravel()
    context = seen**SMOOTHING
    context /= context.sum()
    expected = np.maximum(seen[cells.row] * context[cells.col], 1e-12)
    told = np.log(np.maximum(cells.data, 1e-12) / expected)
    kept = told > 0
    table = sp.csr_matrix((told[kept], (cells.row[kept], cells.col[kept])), near.shape)
    left, strengths, _ = svds(table, k=meaning.DIMENSIONS, random_state=0)
    vectors = left * np.sqrt(strengths)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    texts = list(paragraphs(parser.parse_args().folder))
    own = [_stems(item.text) for item in load_corpus() if not item.is_held_back]
    counts = vocabulary(texts, own)
    places = {word: at for at, word in enumerate(counts)}
    vectors = factorised(cooccurrence(texts + own, places))
    numbers = np.array(list(counts.values()), np.float32)
    weights = np.log(numbers.sum() / (numbers + COMMON)) / 10
    rows = np.round(vectors / np.abs(vectors).max() * 127)
    np.savez_compressed(
        TARGET,
        words=np.array("\n".join(counts)),
        rows=rows.astype(np.int8),
        weights=weights.astype(np.float16),
    )
    print(f"{len(counts):,} words from {sum(map(len, texts)):,}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
