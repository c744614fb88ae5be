"""Moving tasks between hosts: CRIU, the stream between two hosts, the commit, test hosts.

Imports the package ``timeshim``, never the other way round.
"""
