"""What is known over time: facts with validity, what an observation changes, a store on SQLite, and adapters."""
