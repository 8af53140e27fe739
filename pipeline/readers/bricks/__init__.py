"""Survey bricks: the objects of a catalogue or of a list of positions, cut from coadds.

Start with `reader` (the whole brick in order); `objects` selects rows, `images` reads planes, `edges` completes stamps
from neighbours, `wcs` says where pixels are, `positions` reads lists.
"""
