"""Predictions to visitors to rolling counts, each person once.

Start with fusion.py (what a track says about its visitor), then step.py and store.py (how that is counted exactly).
"""
