"""The parts of examples/train_ranker.py."""
