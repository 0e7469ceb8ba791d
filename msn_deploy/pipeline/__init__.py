"""The map: what each command does, composed from the stages. Paths in; files and a frozen result out.

train (training/loop.py) -> export -> calibrate | to FP16 -> build_engine -> evaluate, bench, infer; demo runs them all.
One file per verb, so that `ls` shows the map. Nothing is imported here: `msn_deploy` itself offers the verbs.
"""
