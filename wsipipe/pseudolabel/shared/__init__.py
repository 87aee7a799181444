"""Parts that several methods or refinements share."""
