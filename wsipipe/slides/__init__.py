"""Slides: the Slide protocol, finding and opening slide files, and reading pixels at the working resolution."""

from wsipipe.slides.base import Slide, SlideFile, SlideInfo
from wsipipe.slides.find import find_slides
from wsipipe.slides.open import open_slide

__all__ = ["Slide", "SlideFile", "SlideInfo", "find_slides", "open_slide"]
