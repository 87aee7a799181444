"""Anything that has pixels is a slide: the Slide protocol, its readers, area-mean reading and the tissue finder."""

from wsipipe.slides.base import Slide, SlideInfo
from wsipipe.slides.open import find_slides, open_slide

__all__ = ["Slide", "SlideInfo", "find_slides", "open_slide"]
