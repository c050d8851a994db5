"""What a run would take of devices that are not there: memory, work, time.

`predict.py` is the stage; `cards.py` knows devices and names of meshes;
`counts.py` counts by hand; `program.py` compiles the step from shapes alone
and `hlo.py` reads what came of it.
"""
