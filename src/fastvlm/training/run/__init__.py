"""One run: model, optimizer groups, steps, callbacks, the run's folder, the final model and its card."""
