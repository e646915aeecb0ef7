"""One folder per outside store, with the same file names in each: client, writer, reader, errors, memory.

Imported by the pipeline only; siblings do not import each other. The invariant: every write is idempotent by
identity or absolute by version, so repeating it is harmless.
"""
