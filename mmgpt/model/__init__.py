"""The model: decoder, adapters, heads, the multimodal whole and its loss; no file is read or written here."""
