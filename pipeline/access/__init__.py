"""What accounts may do: computed when something happens to an account, kept as versions, and answered from memory.

The roles `mirror` and `gateway` and the commands import it. Versions of an account only rise, and silence takes nothing
away.
"""
