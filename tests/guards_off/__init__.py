"""Every guard switched off, one at a time: ``python -m tests.guards_off`` shows that a test misses each of them.

A guard that nobody tests can be lost in any change and is found missing when it is needed. So each one has an entry
here: what it keeps from happening, how it is switched off, and the tests that must fail then. No file is edited; the
function gets other code in the process that runs the tests.
"""
