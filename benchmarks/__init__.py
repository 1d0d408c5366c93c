"""Time and memory of jaxsparse and of PyTorch code with the same arithmetic, in the same run.

The commands are `inner_loop` (a meta-step, or curves of it; glances of La-MAML), `stream` (a whole
stream of tasks), `online` (timesteps of a switching stream), `startup` (the first training step)
and `gpu_program` (lower bounds for a GPU, without one). A "form" is one implementation of a step.
Each family has one file with our forms and one with PyTorch's, for example `ours_fewshot` and
`torch_fewshot`. The cases, what is timed, are in `cases_fewshot` and `cases_continual`. `harness`
checks that the forms agree and times them in turn; `probe` measures one form in a fresh process.
"""
