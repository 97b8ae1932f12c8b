"""The benchmarks: one typed GET, by natsweb and by what one would use instead, measured side by side.

`stacks` starts the processes of a case, `load` measures them, `report` judges the figures, `profile` says where
the time goes. `scale` and `streams` measure many services, and bodies, feeds and WebSockets. The programs under load
are in `apps`; none of them knows that it is measured.
"""
