"""Models under test: ours, a server of OpenAI's kind, a model of transformers, and ours under lm-evaluation-harness."""
