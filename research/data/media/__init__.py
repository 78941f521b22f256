"""Pictures, sounds and videos of records: found, decoded within limits, and made the size that a
model reads."""
