"""The model as averages see it: which tensors, how they change, whether they are finite."""
