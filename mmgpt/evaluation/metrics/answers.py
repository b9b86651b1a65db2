"""Scores of a short answer against the right ones."""


def exact_match(prediction: str, references: tuple[str, ...]) -> float:
    """1 if the answer is one of the references but for white space around them."""
    return float(prediction.strip() in {reference.strip() for reference in references})
