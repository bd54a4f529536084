"""Speed measured: training, engine, export and observing; and how far the annotators of the rows agree."""
