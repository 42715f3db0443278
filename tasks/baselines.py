"""What a score must be compared with: classifiers that know no GPT-2."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.sparse import csr_matrix, hstack
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def fit_baselines(texts: Sequence[str], labels: Sequence[int]) -> dict[str, ClassifierMixin]:
    """Fits, by the name to print, classifiers that `predict` a class for each text.

    TF-IDF weighs words and pairs of words that occur twice or more, with the logarithm of their count; beyond that the
    settings are scikit-learn's own. It is left out where there is nothing to fit: one class only, or no word twice.
    """
    return _fit(_words(), "TF-IDF + logistic regression", texts, labels)


def fit_pair_baselines(pairs: Sequence[tuple[str, str]], labels: Sequence[int]) -> dict[str, ClassifierMixin]:
    """As `fit_baselines`, for pairs of texts, from what `PairFeatures` says of them."""
    return _fit(PairFeatures(), "TF-IDF pair features + logistic regression", pairs, labels)


class PairFeatures(TransformerMixin, BaseEstimator):
    """What two texts share and what they do not: for each word or pair of words the product and the distance of its
    weights in the two, and the cosine between the texts."""

    def fit(self, pairs: Sequence[tuple[str, str]], labels: Sequence[int] | None = None) -> PairFeatures:
        self.words_ = _words().fit([text for pair in pairs for text in pair])
        return self

    def transform(self, pairs: Sequence[tuple[str, str]]) -> csr_matrix:
        """n pairs -> (n, 2 * words + 1)"""
        first, second = (self.words_.transform(texts) for texts in zip(*pairs, strict=True))
        both = first.multiply(second)
        return hstack([both, abs(first - second), both.sum(axis=1)]).tocsr()


def _words() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)


def _fit(features: TransformerMixin, name: str, texts: Sequence, labels: Sequence[int]) -> dict[str, ClassifierMixin]:
    baselines = {"majority class": DummyClassifier(strategy="most_frequent").fit(texts, labels)}
    try:
        model = make_pipeline(features, LogisticRegression(max_iter=1000)).fit(texts, labels)
    except ValueError:
        return baselines
    return baselines | {name: model}
