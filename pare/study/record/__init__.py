"""A model at work: recordings of a run, attention maps, films, reports."""
