"""Anything that has pixels is a slide: the Slide protocol, its readers, area-mean reading and the tissue finder."""

from wsipipe.slides.base import Slide, SlideFile, SlideInfo
from wsipipe.slides.open import find_slides, open_slide, with_masks

__all__ = ["Slide", "SlideFile", "SlideInfo", "find_slides", "open_slide", "with_masks"]
