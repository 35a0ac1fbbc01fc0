"""A data set to a model, its manifest and its report.

Start with dataset.py; the crops come from ingest's own alignment, so that training sees what the live system sees.
"""
