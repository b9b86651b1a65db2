"""mmgpt: train, evaluate and prompt GPT-4-style models from parts you choose."""
