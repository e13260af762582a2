"""Where tasks run: in this process, or on the actors of a Ray cluster. One protocol, and which of
them a job gets.
"""
