"""`demographics bench`: what this machine does, part by part, each figure beside a peer's and beside its limit, in one run.

Start with rows.py, then run.py, which lists the parts; a part is a module here with a function `measure`.
"""
