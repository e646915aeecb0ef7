"""`make torture`: real processes and real services under kill -9, damaged files and lost answers, then exact counts.

Run by `python -m tests.torture`; pytest collects nothing here. The invariant it keeps: what was drawn from the seed
says only where to strike, never what the counts must be; those come from the oracle, fed with the log's own records.
"""
