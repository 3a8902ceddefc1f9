"""Frameworks that users bring, unmodified, and our examples: as they call tools over HTTP."""
