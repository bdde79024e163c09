"""What recurrences are for: models over sequences, and the baselines beside them."""

from elman.models.find import SHIPPED, find_cell
from elman.models.language import LanguageModel
from elman.models.mixture import evaluate_mixture
from elman.models.ngram import NGram

__all__ = ["SHIPPED", "LanguageModel", "NGram", "evaluate_mixture", "find_cell"]
