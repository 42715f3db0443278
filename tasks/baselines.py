"""What a score must be compared with: classifiers that know no GPT-2."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def fit_baselines(texts: Sequence[str], labels: Sequence[int]) -> dict[str, ClassifierMixin]:
    """Fits, by the name to print, classifiers that `predict` a class for each text.

    TF-IDF weighs words and pairs of words that occur twice or more, with the logarithm of their count; beyond that the
    settings are scikit-learn's own. It is left out where there is nothing to fit: one class only, or no word twice.
    """
    baselines = {"majority class": DummyClassifier(strategy="most_frequent").fit(texts, labels)}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    try:
        model = make_pipeline(words, LogisticRegression(max_iter=1000)).fit(texts, labels)
    except ValueError:
        return baselines
    return baselines | {"TF-IDF + logistic regression": model}
