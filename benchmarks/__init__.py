"""Time and memory against PyTorch that does the same arithmetic, in the same run.

The commands are `inner_loop` (a meta-step, or curves of it; glances of La-MAML), `stream` (a whole
stream of tasks), `online` (timesteps of a switching stream) and `startup` (the first training
step). Each family has a file of ours and one of PyTorch's, `ours_fewshot` and `torch_fewshot` for
example, and what is timed is drawn in `cases_fewshot` and `cases_continual`. `harness` checks that
the forms agree and takes them in turn; `probe` measures one of them in a process of its own.
"""
