"""The oracle: slow, obviously right, in plain Python, written from the RFCs.

Nothing here imports the compiled modules or shares a line with them.  Where the
two disagree, one of them is wrong, and the RFC says which.
"""
