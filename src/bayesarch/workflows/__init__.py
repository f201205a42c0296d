"""One function per command; the command line and the Python API both call these.

Import from the modules: `bayesarch.workflows.search`, `.run`, `.sample`, `.doctor`. Nothing is imported here, so that
commands that only read a run need no torch.
"""
