"""Any AlgoPerf submission, averaged: the base trains as it does alone, and evaluations see the average.

    from submissions.averaged.pytorch import averaged, lawa  # or .jax

    submission = averaged(base, lawa)  # `base`: a submission's module
    update_params = submission.update_params
    ...

`python -m scripts.average_submission` writes such a file, with the base beside it.
"""
