"""Cameras to face crops: sources, sampling, detection, tracking, alignment, crop selection.

Start with step.py, which turns one frame into messages; camera.py runs it for one camera.
"""
