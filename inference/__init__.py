"""Face crops to predictions, in batches across cameras.

Start with step.py; predictor.py is the port that every engine implements.
"""
