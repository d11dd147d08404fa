"""scikit-learn's 8 x 8 digits, which are part of that package and need no download."""

from dataclasses import dataclass

import numpy as np

from tfrobust.data.split import Dataset, Split, numbered

TEST = 360


@dataclass(frozen=True)
class Digits(Dataset):
    """1,437 training and 360 test images [8, 8, 1], float32 multiples of 1/16."""

    def load(self, split: str) -> Split:
        """Return "train" or "test" of a stratified split, which is the same for all seeds."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        x, x_test, y, y_test = train_test_split(x, y, test_size=TEST, stratify=y, random_state=0)
        return Split.of(x, y) if split == "train" else Split.of(x_test, y_test)


def open_digits() -> Digits:
    """Open scikit-learn's 8 x 8 digits. Nothing is read yet."""
    return Digits((8, 8, 1), numbered(10))
