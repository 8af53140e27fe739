"""What makes confidences honest: temperature scaling, conformal prediction sets, distance to the training images.

Imports no other district. Start with `temperature`; `conformal` and `ood` have the sets and the scores.
"""
