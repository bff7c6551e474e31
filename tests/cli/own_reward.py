"""A reward of texts that is not in the package."""


def lengths(texts):
    """How long the samples are, where they are texts."""
    return [len(text) / 10 for text in texts]
