"""The queue between many servers and many engines: Redis Streams. Torch-free.

Decision 0017 says how it works; docs/reliability.md what it survives.
"""
