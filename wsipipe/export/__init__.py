"""Maps for other programs and for people: one file a format."""
