"""The model: decoder, adapters, the multimodal whole, loss, weights in and out."""
