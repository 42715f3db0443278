"""What a score must be compared with: classifiers that know no GPT-2."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline


def fit_baselines(texts: Sequence[str], labels: Sequence[int]) -> dict[str, Pipeline]:
    """Fits, by the name to print, classifiers that `predict` a class for each text.

    TF-IDF weighs words and pairs of words that occur twice or more, with the logarithm of their count; beyond that the
    settings are scikit-learn's own. Where the training rows have one class only there is nothing to fit but that class.
    """
    baselines = {"majority class": make_pipeline(TfidfVectorizer(), DummyClassifier(strategy="most_frequent"))}
    if len(set(labels)) > 1:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        baselines["TF-IDF + logistic regression"] = make_pipeline(words, LogisticRegression(max_iter=1000))
    return {name: model.fit(texts, labels) for name, model in baselines.items()}
