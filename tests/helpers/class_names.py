"""Class names that are unusual, but sound."""

UNUSUAL = (
    "car ",
    "👩\u200d🚒",  # emoji joined to one
    "می\u200cشود",  # Persian
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",  # a flag, of tags
    "Donau\u00adschiff",  # soft hyphen
    "\U0001faf9\U0001fc00",  # not assigned in every version of Unicode
    "\ue000",  # private use
)
