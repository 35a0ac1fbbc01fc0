"""Two cameras that need no hardware: clips composed of faces that belong to nobody, served over RTSP on loopback.

Start with composer.py (the clips) and rtsp_server.py (the cameras).
"""
