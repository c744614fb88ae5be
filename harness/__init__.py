"""Moves tasks between hosts: drives CRIU, carries the images, and fills the page before the resume.

The harness imports `timeshim`, never the other way round; what runs inside the application is in
`preload/`.
"""
