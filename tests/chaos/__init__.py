"""The fault-test ledger: real processes under load, things that go wrong, and answers compared with what was done."""
