"""What recurrences are for: models over sequences, and the baselines beside them."""

from elman.models.find import find_cell
from elman.models.language import LanguageModel
from elman.models.ngram import NGram

__all__ = ["LanguageModel", "NGram", "find_cell"]
