"""Training harness: self-supervised training, evaluation and a report, run from the checkout as `python -m train`."""
