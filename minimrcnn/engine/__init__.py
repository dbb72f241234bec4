"""The loop around the model: settings, schedule, optimiser, checkpoint, many processes, training."""
