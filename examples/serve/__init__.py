"""A ranking service: events are stored, histories stay encoded, candidates are scored in batches."""
