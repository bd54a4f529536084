"""Speed measured: training, engine, export, observing and the whole pipeline."""
