"""From messages to one batch: token ids, labels, pixels and mels."""
