"""scikit-learn's breast-cancer data, which are part of that package and need no download."""

from dataclasses import dataclass

import numpy as np

from tfrobust.data.split import Dataset, Split

TEST = 171


@dataclass(frozen=True)
class BreastCancer(Dataset):
    """A table of 398 training and 171 test rows of 30 features (Wolberg et al., 1995).

    The features measure the nuclei of cells in an image of a biopsy. Each is scaled so that the
    training rows fill [0, 1]; test rows are cut to this range.
    """

    def load(self, split: str) -> Split:
        """Return "train" or "test" of a stratified split, which is the same for all seeds."""
        from sklearn.datasets import load_breast_cancer
        from sklearn.model_selection import train_test_split

        x, y = load_breast_cancer(return_X_y=True)
        x, x_test, y, y_test = train_test_split(x, y, test_size=TEST, stratify=y, random_state=0)
        low, high = x.min(axis=0), x.max(axis=0)
        rows, labels = (x, y) if split == "train" else (x_test, y_test)
        scaled = np.clip((rows - low) / (high - low), 0.0, 1.0)
        return Split.of(scaled.astype(np.float32), labels)


def open_breast_cancer() -> BreastCancer:
    """Open scikit-learn's breast-cancer data, a table of 30 features. Nothing is read yet."""
    return BreastCancer((30,), ("malignant", "benign"))
