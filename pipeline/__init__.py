"""What the four services agree on: messages, the bus, settings, telemetry, the worker loop and the command line.

Start with messages.py for what travels, bus.py for how, and worker.py for the loop every consuming service runs.
"""
