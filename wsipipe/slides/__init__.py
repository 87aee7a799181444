"""Anything that has pixels is a slide: the Slide protocol, its readers,and area-mean reading."""

from wsipipe.slides.base import Slide, SlideFile, SlideInfo
from wsipipe.slides.open import find_slides, open_slide

__all__ = ["Slide", "SlideFile", "SlideInfo", "find_slides", "open_slide"]
