"""Datasets: what a sample is, where samples come from and how sources are mixed."""

if __name__ == "datasets":
    raise ImportError(
        "this folder is imported as `mmgpt.datasets` (install the project with `pip install -e .`); "
        "for the `datasets` of Hugging Face, take the root of this repository off sys.path"
    )
