"""The refinements of score maps, one file each: the files of this folder are the choices of `--refine`."""
