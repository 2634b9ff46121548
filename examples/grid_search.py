"""A scikit-learn grid search on the local cluster: two lines more than at home."""

from __future__ import annotations

from joblib import parallel_config
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import joblib_azure  # noqa: F401 - registers the backend

if __name__ == "__main__":
    data, target = load_breast_cancer(return_X_y=True)
    grid = {"svc__C": [0.1, 1, 10, 100], "svc__gamma": [0.001, 0.01, 0.1]}
    with parallel_config("azure", cluster="local"):
        search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), grid, cv=5).fit(data, target)
    print(search.best_params_, round(search.best_score_, 4))
