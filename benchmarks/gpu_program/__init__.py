"""Lower bounds of programs on an NVIDIA H200, from what XLA compiles for it, without a GPU.

`target` compiles for a described GPU. `hlo` reads the compiled program, `operations` and `traffic`
count the floating-point operations and bytes of a kernel, and `account` sums them over loops.
`cases` has the programs, `command` the command line, `whole_run` the parts of a run.
"""
