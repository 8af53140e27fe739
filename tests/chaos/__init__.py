"""Surveys that are killed, starved of disk, robbed of their inputs and told the wrong time: the same rows come out.

    python -m tests.chaos --kills 50 --seed 1

`stage` makes a small simulated workspace and the rows of an undisturbed run; `processes` starts and ends what is
disturbed, `moments` says when; `surveys`, `faults` and `other_commands` are the disturbances; `outcomes` compares. The
tests here are the quick part: the story of a survey in processes that are forked ready to go, instead of the command.
"""
