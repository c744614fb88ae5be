"""The C side of timeshim, and how it is built.

Holds what runs inside the task (the shim and the reaper), the page they share with the
supervisor, and the arithmetic that both sides use. Knows nothing but the page.
"""
